# What the files beside it have in common, which are called like Debian's cross compilers.

get_filename_component(gnu "${CMAKE_PARENT_LIST_FILE}" NAME_WE)
set(CMAKE_C_COMPILER ${gnu}-gcc)
set(CMAKE_CXX_COMPILER ${gnu}-g++)

set(CMAKE_FIND_ROOT_PATH /usr/${gnu})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
