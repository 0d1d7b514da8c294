# One line per test executable: kv_test(<file without .cpp> DEPENDS <libraries>).
