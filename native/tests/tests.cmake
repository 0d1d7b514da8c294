# One line per test executable: kv_test(<file without .cpp> DEPENDS <libraries>).
kv_test(frame_test DEPENDS kv_wire)
kv_test(messages_test DEPENDS kv_wire)
target_compile_definitions(messages_test PRIVATE KVSTORE_TEST_DIR="${CMAKE_CURRENT_SOURCE_DIR}/tests")
kv_test(index_test DEPENDS kv_index)
kv_test(object_reader_test DEPENDS kv_index)
kv_test(client_slots_test DEPENDS kv_index)
