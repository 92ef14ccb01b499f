"""Pickles that run code or lie, for tests to write into files and never to load but through Thalweg.

A payload, should one ever run, makes an empty file at the path that it is given, and nothing else. Pickles
are put together by hand, operation by operation, so that nothing has to be imported to name it.
"""

import struct
from collections.abc import Iterator

# --- pickles, operation by operation


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + several(*arguments) + b"R"


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


NO_HOOKS = called("collections", "OrderedDict")


def storage(count: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return several(text("storage"), named("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(
    held: bytes = storage(), offset=0, size=(4,), stride=(1,), hooks=NO_HOOKS, more: tuple[bytes, ...] = ()
) -> bytes:
    sizes, strides = (several(*map(integer, values)) for values in (size, stride))
    return called(
        "torch._utils", "_rebuild_tensor_v2", held, integer(offset), sizes, strides, b"\x89", hooks, *more
    )


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


# --- code

# What scanners of pickles have listed and what they missed: module, name, arguments. "@" is the file to make.
TOUCH = "touch @"
PYTHON = "open('@', 'w').close()"
GADGETS = (
    ("os", "system", TOUCH),
    ("posix", "system", TOUCH),
    ("nt", "system", TOUCH),
    ("os", "popen", TOUCH),
    ("os", "mkdir", "@"),
    ("subprocess", "getoutput", TOUCH),
    ("subprocess", "Popen", TOUCH),
    ("pty", "spawn", TOUCH),
    ("builtins", "eval", PYTHON),
    ("__builtin__", "exec", PYTHON),
    ("builtins", "open", "@", "w"),
    ("builtins", "__import__", "os"),
    ("builtins", "getattr", "os", "system"),
    ("builtins", "compile", PYTHON, "x", "exec"),
    ("importlib", "import_module", "os"),
    ("runpy", "run_path", "@"),
    ("pkgutil", "resolve_name", "os:system"),
    ("operator", "attrgetter", "system"),
    ("operator", "methodcaller", "system", TOUCH),
    ("functools", "partial", TOUCH),
    ("types", "CodeType", PYTHON),
    ("types", "FunctionType", PYTHON),
    ("codecs", "open", "@", "w"),
    ("marshal", "loads", "@"),
    ("timeit", "timeit", PYTHON),
    ("cProfile", "run", PYTHON),
    ("pdb", "run", PYTHON),
    ("bdb", "Bdb.run", PYTHON),
    ("doctest", "debug_script", PYTHON),
    ("code", "InteractiveInterpreter.runcode", PYTHON),
    ("trace", "Trace.run", PYTHON),
    ("ctypes", "CDLL", "@"),
    ("logging", "FileHandler", "@"),
    ("io", "FileIO", "@", "w"),
    ("_io", "open", "@", "w"),
    ("shutil", "copyfile", "/dev/null", "@"),
    ("tempfile", "mkdtemp", "@"),
    ("pathlib", "Path.touch", "@"),
    ("webbrowser", "open", "file://@"),
    ("urllib.request", "urlretrieve", "file:///dev/null", "@"),
    ("uuid", "_get_command_stdout", "touch", "@"),
    ("_osx_support", "_read_output", TOUCH),
    ("_pyrepl.pager", "pipe_pager", "", TOUCH),
    ("numpy.f2py.crackfortran", "getlincoef", PYTHON),
    ("numpy.testing._private.utils", "runstring", PYTHON),
    ("numpy._core.multiarray", "_reconstruct", "@"),
    ("torch", "load", "@"),
    ("torch.serialization", "load", "@"),
    ("torch.hub", "load", "@", "x"),
    ("torch.jit", "load", "@"),
    ("torch.utils.collect_env", "run", TOUCH),
    ("torch._inductor.codecache", "compile_file", "@"),
    ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression", PYTHON),
    ("torch.utils._config_module", "ConfigModule.load_config", "@"),
    ("torch.nn.modules.linear", "Linear", "4"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__", "@"),
    ("torch", "_utils._import_dotted_name", "os.system"),
    ("collections", "OrderedDict.__reduce__", "@"),
    ("cloudpickle.cloudpickle", "_make_function", PYTHON),
    ("__main__", "Net", "@"),
    ("os\x1b[2J", "sys\u202etem\x07", TOUCH),  # would steer the terminal that shows it
    ("o" * 100_000, "s" * 100_000, TOUCH),
)


def payload(gadget: tuple[str, ...], target: str, protocol: int) -> bytes:
    """Name the gadget and call it, as the protocol writes that."""
    module, name, *arguments = (part.replace("@", target) for part in gadget)
    if protocol == 0:
        inner = b"".join(b"V" + a.encode("raw-unicode-escape") + b"\n" for a in arguments)
        return named(module, name) + b"(" + inner + b"tR"
    if protocol < 4:
        return called(module, name, *map(text, arguments))
    return text(module) + b"\x94" + text(name) + b"\x94\x93" + several(*map(text, arguments)) + b"R"


def variants(gadget: tuple[str, ...], target: str) -> Iterator[tuple[str, bytes]]:
    """Call without REDUCE: older and newer operations that end in a call as well."""
    module, name, *arguments = (part.replace("@", target) for part in gadget)
    inner = b"".join(map(text, arguments))
    yield "inst", b"\x80\x02(" + inner + f"i{module}\n{name}\n.".encode()
    yield "obj", b"\x80\x02(" + named(module, name) + inner + b"o."
    yield "newobj", program(named(module, name) + several(*map(text, arguments)) + b"\x81")
    yield "build", program(named(module, name) + table(x=text(target)) + b"b")
    yield "held", program(table(weight=tensor(), x=named(module, name)))
    yield "first", program(called(module, name, *map(text, arguments)) + b"0" + table(weight=tensor()))
    yield "cut", program(called(module, name, *map(text, arguments)))[:-1]
    yield "hook", program(table(w=tensor(hooks=NO_HOOKS + integer(0) + named(module, name) + b"s")))


# --- lies about tensors and containers


def laughs(opening: bytes, closing: bytes, levels: int = 60) -> bytes:
    """Hold the last container twice, again and again; written out that is 2^levels values."""
    body = opening + closing + b"q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        inner = get + get if opening != b"}(" else text("a") + get + text("b") + get
        body += opening + inner + closing + b"q" + bytes([level + 1])
    return several(body)


def numbered(count: int, step: int, value: bytes = b"N") -> bytes:
    return b"}(" + b"".join(integer(i * step) + value for i in range(1, count)) + b"u"


_SPARSE = (
    "_rebuild_sparse_tensor",
    "_rebuild_qtensor",
    "_rebuild_nested_tensor",
    "_rebuild_wrapper_subclass",
)
_OTHER = (
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_parameter_with_state",
)
_IDENTITY = (text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), integer(4))


def lying_pickles() -> dict[str, tuple[bytes, str]]:
    """Return pickles for an archive with one storage of four float32, and a part of what must be said."""
    damaged, code = "is damaged", "could run code"
    lies = {
        "stride-0": (tensor(size=(10**12,), stride=(0,)), "a tensor of 1000000000000 numbers"),
        "stride-0-twice": (tensor(size=(10**6, 10**6), stride=(0, 0)), "a tensor of"),
        "overlapping": (tensor(size=(3, 3), stride=(1, 1)), "a tensor of 9 numbers"),
        "outside": (tensor(offset=1), "outside its storage"),
        "far-outside": (tensor(offset=1 << 62), "outside its storage"),
        "wide-stride": (tensor(size=(2,), stride=(1 << 40,)), "outside its storage"),
        "empty-far-away": (tensor(offset=5, size=(0,)), "outside its storage"),
        "negative-offset": (tensor(offset=-1), damaged),
        "negative-size": (tensor(size=(-4,)), damaged),
        "negative-stride": (tensor(stride=(-1,)), damaged),
        "overflow": (tensor(size=(1 << 62, 1 << 62, 0), stride=(1, 1, 1)), damaged),
        "wrap-around": (tensor(size=(1 << 32, 1 << 32), stride=(1, 1)), damaged),
        "huge-integer": (tensor(size=(1 << 1000,)), damaged),
        "other-length": (tensor(size=(2, 2)), damaged),
        "65-dimensions": (tensor(size=(1,) * 65, stride=(1,) * 65), damaged),
        "large-storage": (tensor(storage(10**12)), "another size"),
        "larger-storage": (tensor(storage(5), size=(5,)), "another size"),
        "smaller-storage": (tensor(storage(3), size=(3,)), "another size"),
        "wider-storage": (tensor(storage(kind="DoubleStorage")), "another size"),
        "no-record": (tensor(storage(key="1")), "another size"),
        "path-for-key": (tensor(storage(key="../data.pkl")), "another size"),
        "two-types": (several(storage(), storage(kind="IntStorage")), "two types"),
        "module-identity": (several(text("module"), *_IDENTITY[1:]) + b"Q", damaged),
        "short-identity": (several(text("storage")) + b"Q", damaged),
        "text-identity": (text("stora") + b"Q", damaged),
        "number-identity": (integer(0) + b"Q", damaged),
        "list-identity": (b"](" + b"".join(_IDENTITY) + b"eQ", damaged),
        "key-not-text": (several(*_IDENTITY[:2], integer(0), *_IDENTITY[3:]) + b"Q", damaged),
        "storage-of-lists": (several(text("storage"), NO_HOOKS, *_IDENTITY[2:]) + b"Q", damaged),
        "hooks": (tensor(hooks=NO_HOOKS + integer(0) + named("torch", "device") + b"s"), code),
        "hooks-later": (several(tensor(hooks=NO_HOOKS + b"q\x00"), b"h\x00" + text("x") + b"Ns"), code),
        "hooks-no-table": (tensor(hooks=b"]"), damaged),
        "mark-not-known": (tensor(more=(table(data=b"\x88"),)), damaged),
        "conjugate-real": (tensor(more=(table(conj=b"\x88"),)), damaged),
        "too-many": (tensor(more=(b"N", b"N")), damaged),
        "build-tensor": (tensor() + several(storage(), integer(0)) + b"b", "sets attributes"),
        "build-table": (NO_HOOKS + table(items=named("torch", "device")) + b"b", "sets attributes"),
        "build-list": (b"]" + table(append=b"N") + b"b", "sets attributes"),
        "item-of-tensor": (tensor() + integer(0) + integer(1) + b"s", damaged),
        "item-of-tuple": (b")" + integer(0) + b"a", damaged),
        "new-tensor": (named("torch", "Tensor") + b")\x81", code),
        "new-table": (named("collections", "OrderedDict") + b")\x81", code),
        "parameter-of-list": (called("torch._utils", "_rebuild_parameter", b"]", b"\x89", NO_HOOKS), damaged),
        "from-type": (called("torch._tensor", "_rebuild_from_type_v2", tensor()), code),
        "layout": (called("torch.serialization", "_get_layout", text("torch.strided")), code),
        "default-table": (called("collections", "defaultdict", named("builtins", "list")), code),
        "function-kept": (table(weight=tensor(), x=named("collections", "OrderedDict")), "more than tensors"),
        "large-bytearray": (called("builtins", "bytearray", integer(10**12)), damaged),
        "other-encoding": (called("_codecs", "encode", text("a" * 99), text("idna")), damaged),
        "size-of-number": (called("torch", "Size", integer(10**9)), damaged),
        "set-of-lists": (called("builtins", "set", b"](]]e"), "a key that is no text"),
        "list-as-key": (b"}]Ns", "a key that is no text"),
        "tuple-as-key": (b"})Ns", "a key that is no text"),
        "colliding-keys": (numbered(2_000, (1 << 61) - 1), "a key that is no text"),
        "odd-items": (b"}(" + text("a") + b"u", damaged),
        "no-memo": (b"h\x07", damaged),
        "no-mark": (b"t", damaged),
        "empty-stack": (b"", damaged),
        "empty-pair": (b"\x86", damaged),
        "open-mark": (b"(", damaged),
        "two-values": (b"NN", damaged),
        "two-ends": (b"N.N", damaged),
        "cut-text": (b"X\xff\xff\xff\xff", damaged),
        "cut-number": (b"J\x00", damaged),
        "cut-name": (b"ctorch", damaged),
        "no-utf-8": (b"X\x01\x00\x00\x00\xff", damaged),
        "holds-itself": (b"]q\x00h\x00a", "holds itself"),
        "table-holds-itself": (b"}q\x00" + text("a") + b"h\x00s", "holds itself"),
        "laughs-list": (laughs(b"](", b"e"), "written out"),
        "laughs-tuple": (laughs(b"(", b"t"), "written out"),
        "laughs-table": (laughs(b"}(", b"u"), "written out"),
        "hidden-laughs": (NO_HOOKS + table(_metadata=laughs(b"](", b"e")) + b"b", "written out"),
        "deep-tuple": (b"N" + b"\x85" * 65, "nested more than 64"),
        "not-weights": (integer(3), "holds no weights"),
        "no-weights": (table(epoch=integer(3)), "holds no weights"),
        "steering-keys": (b"}" + text("\x1b]0;x\x07\u202e\ud800\n\r") + b"Ns", "holds no weights"),
        "long-keys": (b"}" + text("k" * 1_000_000) + b"Ns", "holds no weights"),
        "weights-in-weights": (table(model=table(weight=table(weight=tensor()))), "holds no weights"),
    }
    for name in _SPARSE + _OTHER:
        lies[name] = (called("torch._utils", name, tensor()), code)
    for operation in b"012dgilopjFIJLSVTUrB\x8d\x8b\x8c\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98\x82\x83":
        lies[f"operation-{operation:02x}"] = (bytes([operation]) + b"0\n" * 8, "is damaged|could run code")
    return {name: (program(body), said) for name, (body, said) in lies.items()}
