import sre2l  # noqa: F401 (first of all: it sees to signals while the script is still importing)
