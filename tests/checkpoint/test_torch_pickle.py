"""The restricted reader of PyTorch files: what it reads, and what it refuses to run."""

import collections
import io
import pickle
import zipfile

import numpy as np
import pytest

from ldm_scaling.checkpoint.torch_pickle import RefusedPickleError, load_torch_state


class Global:
    """Pickles as a call of any global, PyTorch's among them, without PyTorch."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Storage:
    def __init__(self, kind, key, elements):
        self.pid = ("storage", Global("torch", kind), key, "cpu", elements)


class Writer(pickle._Pickler):  # the Python one, whose opcodes can be chosen
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return (*obj.pid, None) if self.legacy else obj.pid
        return None

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Global):
            return super().save(obj, save_persistent_id)
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        if obj.args:
            super().save(obj.args)
            self.write(pickle.REDUCE)
        return None


def tensor(kind, key, elements, size, stride, offset=0):
    hooks = collections.OrderedDict()
    storage = Storage(kind, key, elements)
    return Global("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, hooks)


def dumps(obj, legacy=False):
    file = io.BytesIO()
    Writer(file, legacy).dump(obj)
    return file.getvalue()


def write_zip(path, state, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(state))
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path, state, storages):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {}}]
    parts = [dumps(part) for part in head] + [dumps(state, legacy=True), dumps(list(storages))]
    for array in storages.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    path.write_bytes(b"".join(parts))


FORMATS = {"zip": write_zip, "legacy": write_legacy}
NUMBERS = np.arange(12, dtype=np.float32)


@pytest.fixture(params=FORMATS)
def write(request):
    return FORMATS[request.param]


def test_tensors_are_read_with_their_strides(tmp_path, write):
    half, counts = np.array([1.5, -2.0], np.float16), np.array([7], np.int64)
    state = collections.OrderedDict(
        weight=tensor("FloatStorage", "0", 12, (3, 4), (4, 1)),
        transposed=tensor("FloatStorage", "0", 12, (4, 3), (1, 4)),
        part=tensor("FloatStorage", "0", 12, (2, 2), (4, 1), offset=5),
        half=tensor("HalfStorage", "1", 2, (2,), (1,)),
        count=tensor("LongStorage", "2", 1, (), ()),
        empty=tensor("FloatStorage", "0", 12, (0, 4), (4, 1)),
    )
    write(tmp_path / "a.pth", state, {"0": NUMBERS, "1": half, "2": counts})
    found = load_torch_state(tmp_path / "a.pth")
    square = NUMBERS.reshape(3, 4)
    expected = {
        "weight": square,
        "transposed": square.T,
        "part": square[1:, 1:3],
        "half": half,
        "count": counts[0],
        "empty": square[:0],
    }
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, write):
    weight = tensor("FloatStorage", "0", 12, (12,), (1,))
    write(tmp_path / "a.ckpt", {"epoch": 3, "state_dict": {"weight": weight}}, {"0": NUMBERS})
    [(name, array)] = load_torch_state(tmp_path / "a.ckpt").items()
    assert name == "weight"
    assert np.array_equal(array, NUMBERS)


@pytest.mark.parametrize(
    "module_and_name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy.core.multiarray", "scalar"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
    ],
)
def test_any_other_global_is_refused_and_not_called(tmp_path, write, module_and_name):
    trace = tmp_path / "trace"
    state = {
        "weight": tensor("FloatStorage", "0", 12, (12,), (1,)),
        "evil": Global(*module_and_name, f"touch {trace}"),
    }
    write(tmp_path / "a.pth", state, {"0": NUMBERS})
    with pytest.raises(RefusedPickleError, match=".".join(module_and_name)):
        load_torch_state(tmp_path / "a.pth")
    assert not trace.exists()


def test_tensors_stay_inside_their_storage(tmp_path, write):
    cases = [
        ((13,), (1,), 0),
        ((3,), (6,), 0),
        ((2,), (1,), 11),
        ((2,), (1,), -1),
        ((2,), (-1,), 5),
        ((10**9,), (0,), 0),
        ((2, 2), (1,), 0),
    ]
    for size, stride, offset in cases:
        state = {"weight": tensor("FloatStorage", "0", 12, size, stride, offset)}
        write(tmp_path / "a.pth", state, {"0": NUMBERS})
        with pytest.raises(RefusedPickleError, match="tensor"):
            load_torch_state(tmp_path / "a.pth")


def test_attributes_of_tensors_cannot_be_set(tmp_path):
    state = {"weight": tensor("FloatStorage", "0", 12, (12,), (1,))}
    program = dumps(state["weight"])[:-1] + dumps({"size": (10**6,)})[2:-1] + pickle.BUILD + b"."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", NUMBERS.tobytes())
    with pytest.raises(RefusedPickleError, match="sets attributes"):
        load_torch_state(tmp_path / "a.pth")


def test_torn_files_and_other_contents_are_named(tmp_path, write):
    path = tmp_path / "a.pth"
    write(path, {"weight": tensor("FloatStorage", "0", 12, (12,), (1,))}, {"0": NUMBERS})
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RefusedPickleError, match=r"a\.pth: "):
            load_torch_state(path)
    write(path, {"model": {"weight": 1.0}}, {})
    with pytest.raises(RefusedPickleError, match="'model' is a nested dict, not a tensor"):
        load_torch_state(path)
    write(path, [1, 2], {})
    with pytest.raises(RefusedPickleError, match="holds a list"):
        load_torch_state(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RefusedPickleError, match="not a PyTorch file"):
        load_torch_state(path)
    with pytest.raises(FileNotFoundError):
        load_torch_state(tmp_path / "nowhere.pth")
