# What `cmake --install` leaves behind: the library, its six headers, the command, and the package
# that find_package(flexact) reads. Python wheels take the component "python" alone.
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/flexactConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/flexactConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/flexactConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flexact)

# No macro tells a shared build's objects from a static one's: a compiler cache serves both.
set_target_properties(flexact PROPERTIES DEFINE_SYMBOL "" VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
install(TARGETS flexact EXPORT flexactTargets COMPONENT development
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/flexact DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development
  FILES_MATCHING PATTERN "*.hpp")
install(EXPORT flexactTargets NAMESPACE flexact:: COMPONENT development
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flexact)
install(
  FILES ${CMAKE_CURRENT_BINARY_DIR}/flexactConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/flexactConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/flexact COMPONENT development)
install(FILES LICENSE licenses/CUTLASS.txt DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT development)

if(TARGET flexact_cli)
  if(SKBUILD)
    install(TARGETS flexact_cli RUNTIME DESTINATION ${SKBUILD_SCRIPTS_DIR} COMPONENT python)
  else()
    # Finds a shared libflexact beside itself, wherever the prefix is moved to.
    set_target_properties(flexact_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
    install(TARGETS flexact_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT tools)
  endif()
endif()
