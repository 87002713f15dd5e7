# nlohmann-json, the library's one dependency and header-only: the system's package where there is
# one, else the headers that PyPI's nlohmann-json ships (a requirement of every pip build).
if(TARGET nlohmann_json::nlohmann_json)
  return()
endif()
find_package(nlohmann_json 3.11 QUIET)
if(nlohmann_json_FOUND)
  return()
endif()

find_package(Python 3.11 QUIET COMPONENTS Interpreter)
set(flexact_json_hint "")
if(Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nlohmann_json, os; print(os.path.dirname(nlohmann_json.__file__))"
    OUTPUT_VARIABLE flexact_json_hint OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(FLEXACT_NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS "${flexact_json_hint}/include")
if(NOT FLEXACT_NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR
    "flexact needs the headers of nlohmann-json 3.11 or newer and found none.\n"
    "Debian and Ubuntu: apt-get install nlohmann-json3-dev. With pip only: pip install nlohmann-json.")
endif()
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
target_include_directories(nlohmann_json::nlohmann_json SYSTEM INTERFACE ${FLEXACT_NLOHMANN_JSON_INCLUDE_DIR})
message(STATUS "nlohmann-json: ${FLEXACT_NLOHMANN_JSON_INCLUDE_DIR}")
