# Makes the static library out of cargo's: one relocatable object, whose only global names are those
# of the header. So it links beside any other Rust archive: two of them have the names of the
# standard library in common.
#
#   cmake -DFROM=ARCHIVE -DTO=ARCHIVE [-DLINKER=ld -DOBJCOPY=objcopy -DNM=nm -DAR=ar]
#         -P one_object.cmake
#
# Without the tools the archive is cargo's as it is.

# What it was made of, by content: cargo gives archives that it has made before their old dates.
cmake_path(GET TO PARENT_PATH folder)
file(MAKE_DIRECTORY "${folder}")
set(made_of "${folder}/made_of.txt")
file(SHA256 "${FROM}" archive)
file(SHA256 "${CMAKE_CURRENT_LIST_FILE}" script)
set(now "${archive} ${script} ${LINKER} ${OBJCOPY} ${AR}\n")
if(EXISTS "${TO}" AND EXISTS "${made_of}")
  file(READ "${made_of}" before)
  if(before STREQUAL now)
    return()
  endif()
endif()
# Nothing of another run is left where this one fails.
file(REMOVE "${TO}" "${made_of}")

# run(COMMAND...): the answer in `answer`.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE err)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${status}): ${err}")
  endif()
  set(answer "${out}" PARENT_SCOPE)
endfunction()

if(NOT LINKER)
  run("${CMAKE_COMMAND}" -E copy "${FROM}" "${TO}")
  file(WRITE "${made_of}" "${now}")
  return()
endif()

# nm may complain of objects of the standard library where its plug-ins are older than Rust.
run("${NM}" --defined-only --extern-only "${FROM}")
string(REGEX MATCHALL " T fa_[a-z0-9_]+" names "${answer}")
list(TRANSFORM names REPLACE " T " "--undefined=")
list(REMOVE_DUPLICATES names)
list(SORT names)
if(NOT names)
  message(FATAL_ERROR "${FROM} defines no function of the header.")
endif()

# Its name is that of the archive's member.
set(object "${folder}/flash_attention.o")
# Groups of sections are made single ones, since another archive may have a group of the same name,
# of which a linker would keep the first. What no function of the header reaches goes, but for
# tables of constructors, which a linker keeps.
run("${LINKER}" -r --force-group-allocation --gc-sections ${names} -o "${object}" "${FROM}")
# The compiler's own representation of the standard library would make no sense as it is joined
# here, and the debug information is that of the standard library alone.
run("${OBJCOPY}" --wildcard "--keep-global-symbol=fa_*" --strip-debug
  --remove-section=.llvmbc --remove-section=.llvmcmd "${object}")
# Without dates and owners: the same object makes the same archive.
run("${AR}" rcsD "${TO}" "${object}")
file(REMOVE "${object}")
file(WRITE "${made_of}" "${now}")
