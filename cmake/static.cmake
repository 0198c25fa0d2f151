# The static library, made from cargo's by cmake/one_object.cmake, with the linker and the tools of
# the C compiler.

set(tools)
set(FA_HIDES_NAMES FALSE)
if(NOT WIN32)
  # Other linkers than GNU's may lack the option.
  set(linker "${CMAKE_LINKER}")
  execute_process(COMMAND "${linker}" --help OUTPUT_VARIABLE options ERROR_QUIET)
  if(NOT options MATCHES "--force-group-allocation")
    find_program(FA_LINKER ld.bfd)
    mark_as_advanced(FA_LINKER)
    set(linker "${FA_LINKER}")
  endif()
  if(linker AND CMAKE_OBJCOPY AND CMAKE_NM AND CMAKE_AR)
    set(tools "-DLINKER=${linker}" "-DOBJCOPY=${CMAKE_OBJCOPY}" "-DNM=${CMAKE_NM}" "-DAR=${CMAKE_AR}")
    set(FA_HIDES_NAMES TRUE)
  endif()
endif()
if(NOT FA_HIDES_NAMES)
  message(STATUS "The static library keeps its inner names: it cannot be linked beside another Rust archive")
endif()

add_custom_target(flash_attention_static ${FA_ALL}
  COMMAND "${CMAKE_COMMAND}" "-DFROM=${FA_CARGO_LIBS}/libflash_attention.a" "-DTO=${FA_STATIC_LIB}" ${tools}
    -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/one_object.cmake"
  BYPRODUCTS "${FA_STATIC_LIB}"
  VERBATIM)
add_dependencies(flash_attention_static flash_attention_cargo)
