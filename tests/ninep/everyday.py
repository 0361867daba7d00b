"""Walk, list, stat, read, write and be refused with PyPI's p9fs, in the version that is named. Prints what it saw."""

import sys

from p9fs import P9FileSystem, Version

version, port = Version.from_str(sys.argv[1]), int(sys.argv[2])
is_linux = version == Version.v9P2000L
tree = P9FileSystem("127.0.0.1", port, "glenda", version=version)
client = tree.client


def attempt(what, act):
    try:
        print(what, act())
    except Exception as error:  # what is refused is part of what is shown
        print(what, "refused:", type(error).__name__, error)


def opened(path, mode):
    client._walk(client.ROOT, 77, path.split("/"))
    return client._lopen(77, mode) if is_linux else client._open(77, mode)


def write(path, data):
    opened(path, 1)
    try:
        return client._write(77, 0, data).count
    finally:
        client._clunk(77)


attempt("list", lambda: sorted(name.lstrip("./") for name in tree.ls("", detail=False)))
attempt("many", lambda: len(tree.ls("many", detail=False)))
attempt("info", lambda: [tree.info("big")[key] for key in ("type", "mode", "size")])
attempt("directory", lambda: tree.info("dir/sub")["type"])
attempt("README", lambda: tree.cat("README"))
attempt("big", lambda: sum(tree.cat("big")))
attempt("leaf", lambda: tree.cat("dir/sub/leaf"))
attempt("nowhere", lambda: tree.cat("nowhere"))
attempt("ctl", lambda: write("ctl", b"ok\n"))
attempt("wrong", lambda: write("ctl", b"fly\n"))
attempt("secret", lambda: opened("secret", 0))
client._clunk(77)
attempt("remove", lambda: tree.rm_file("README"))
attempt("mkdir", lambda: tree.mkdir("dir/new", create_parents=False))
attempt("version", lambda: client.version.name)
