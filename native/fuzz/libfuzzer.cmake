# What -DKVSTORE_FUZZ=ON adds: instrumentation in every room (kv_options), and kv_fuzzer, libFuzzer's
# runtime with its main(). Clang has both; GCC takes the runtime from Debian's libclang-rt-dev, and
# gcc_coverage.cpp translates between the two.
add_library(kv_fuzzer INTERFACE)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    file(GLOB runtimes /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-${CMAKE_SYSTEM_PROCESSOR}.a)
    if(NOT runtimes)
        message(FATAL_ERROR "libFuzzer's runtime is missing: apt-get install libclang-rt-dev")
    endif()
    list(GET runtimes -1 runtime)
    target_compile_options(kv_options INTERFACE -fsanitize-coverage=trace-pc,trace-cmp)
    add_library(kv_gcc_coverage STATIC ${CMAKE_CURRENT_LIST_DIR}/gcc_coverage.cpp)
    target_compile_options(kv_gcc_coverage PRIVATE -O2 -Wall -Wextra -Wconversion -Wshadow -Werror)
    target_link_options(kv_fuzzer INTERFACE -Wl,--wrap=__sanitizer_cov_trace_pc)
    target_link_libraries(kv_fuzzer INTERFACE -Wl,--whole-archive kv_gcc_coverage -Wl,--no-whole-archive ${runtime})
else()
    target_compile_options(kv_options INTERFACE -fsanitize=fuzzer-no-link)
    target_link_options(kv_fuzzer INTERFACE -fsanitize=fuzzer)
endif()
