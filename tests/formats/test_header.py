import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError
from deltasmith.formats.safetensors_header import MAX_HEADER, Header, parse_header
from deltasmith.formats.safetensors_reader import SafetensorsFile
from formats import attacks
from formats.attacks import assemble, entry


def assert_refused(path):
    with pytest.raises(DamagedInputError) as caught:
        SafetensorsFile(path)
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("what", attacks.BAD_HEADERS)
def test_fault_20_21_23_30_headers_that_lie(tmp_path, what):
    header, payload, word = attacks.BAD_HEADERS[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(assemble(header, payload))
    assert word in assert_refused(path)


@pytest.mark.parametrize("what", attacks.BAD_LENGTHS)
def test_fault_22_header_length_lies(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(assemble({}, b"\0" * 24, length=attacks.BAD_LENGTHS[what]))
    assert "header" in assert_refused(path)


def test_fault_22_length_of_just_over_the_limit_in_a_file_that_has_it(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(assemble("{}", length=MAX_HEADER + 1))
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER + 100)
    assert "more than the format's 100000000" in assert_refused(path)


@pytest.mark.parametrize(
    "keep", ["all but 1", "all but 8", "half the header", "the header", "9", "8", "7", "0"]
)
def test_fault_20_truncated(tmp_path, keep):
    path = attacks.small_file(tmp_path / "model.safetensors")
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    size = {"all but 1": -1, "all but 8": -8, "half the header": header // 2, "the header": header}.get(keep)
    path.write_bytes(whole[: int(keep) if size is None else size])
    message = assert_refused(path)
    if keep.startswith("all but"):
        assert f"24 bytes of tensors announced, {24 - int(keep[-1])} there" in message
    if keep == "half the header":
        assert f"truncated to {header // 2} bytes" in message


@pytest.mark.parametrize("low_byte", [0x80, 0x1F])
def test_fault_20_a_truncated_file_is_not_taken_for_a_pickle_or_gzip(tmp_path, low_byte):
    path = tmp_path / "model.safetensors"
    path.write_bytes((0x8B00 | low_byte).to_bytes(8, "little") + b'{"a":')
    assert "truncated" in assert_refused(path)


@pytest.mark.parametrize("what", attacks.BAD_NAMES)
def test_fault_31_names_that_could_do_harm(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(assemble({attacks.BAD_NAMES[what]: entry("U8", [1], 0, 1)}, b"\0"))
    message = assert_refused(path)
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize(
    "name", ["a", "conv1/W", "unet:0:down", "<s1>", "层.0.weight", "a b", "x" * 1024, "a..b", "..."]
)
def test_names_in_use_are_accepted(name):
    header = json.dumps({name: entry("U8", [1], 0, 1)}).encode()
    assert list(parse_header(header, len(header) + 9, "x").specs) == [name]


def test_metadata_null_is_absence_and_strings_are_kept():
    text = b'{"__metadata__": null}'
    assert parse_header(text, 8 + len(text), "x").metadata == {}
    text = b'{"__metadata__": {"format": "pt", "note": "two\\nlines"}}  '
    assert parse_header(text, 8 + len(text), "x").metadata == {"format": "pt", "note": "two\nlines"}


def test_fault_49_empty_tensors_scalars_and_shared_offsets():
    header = {
        "s": entry("F32", [], 0, 4),
        "none": entry("F32", [0, 5], 4, 4),
        "none too": entry("F32", [3, 0], 4, 4),
        "one": entry("U8", [1, 1, 1], 4, 5),
        "none, listed late": entry("U8", [0], 4, 4),
    }
    text = json.dumps(header).encode()
    parsed = parse_header(text, 8 + len(text) + 5, "x")
    assert [(s.name, s.shape, s.size) for s in parsed.specs.values()] == [
        ("s", (), 1),
        ("none", (0, 5), 0),
        ("none too", (3, 0), 0),
        ("none, listed late", (0,), 0),
        ("one", (1, 1, 1), 1),
    ]
    assert parsed.begins["one"] == parsed.data_start + 4


def test_specs_come_in_file_order_whatever_the_order_of_the_header():
    text = json.dumps({"b": entry("U8", [1], 1, 2), "a": entry("U8", [1], 0, 1)}).encode()
    assert list(parse_header(text, 8 + len(text) + 2, "x").specs) == ["a", "b"]


def test_no_tensors_at_all():
    assert parse_header(b"{}", 10, "x") == Header({}, {}, {}, 10, 10)


def test_many_tensors():
    text = json.dumps(attacks.many_empty(200_000)).encode()
    assert len(parse_header(text, 8 + len(text), "x").specs) == 200_000


def test_agrees_with_the_reference_implementation(tmp_path):
    arrays = {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4),
        "h": np.ones((2, 2), np.float16),
        "scalar": np.array(3.0, np.float64),
        "none": np.zeros((0, 3), np.float32),
        "i": np.arange(3, dtype=np.int64),
        "flags": np.array([True, False]),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert {n: (s.shape, s.dtype.name) for n, s in file.specs.items()} == {
        n: (a.shape, a.dtype.name) for n, a in arrays.items()
    }
    assert all(file.raw(n, 0, a.size) == a.tobytes() for n, a in arrays.items())
    assert file.metadata == {"format": "pt"}


# Mutations of an honest header: whatever happens, only DamagedInputError comes out.
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def only_damage(text, nbytes):
    try:
        parsed = parse_header(text, nbytes, "x.safetensors")
    except DamagedInputError as error:
        message = str(error)
    else:
        return parsed
    assert "x.safetensors" in message
    return None


@settings(deadline=None)
@given(st.data())
def test_a_mutated_object_is_parsed_or_refused(data):
    header = attacks.honest_header()
    for _ in range(data.draw(st.integers(1, 3))):
        target = header.get(data.draw(st.sampled_from(["a", "b"])))
        if isinstance(target, dict) and data.draw(st.booleans()):
            target[data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))] = data.draw(JUNK)
        else:
            header[data.draw(st.sampled_from(["a", "b", "__metadata__", "c", "\x1b"]))] = data.draw(JUNK)
    text = json.dumps(header).encode()
    parsed = only_damage(text, 8 + len(text) + data.draw(st.integers(0, 30)))
    if parsed is not None:
        assert sum(s.nbytes for s in parsed.specs.values()) + parsed.data_start == parsed.nbytes


@settings(deadline=None)
@given(st.data())
def test_mutated_bytes_are_parsed_or_refused(data):
    text = bytearray(json.dumps(attacks.honest_header()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[at] = data.draw(st.integers(0, 255))
        else:
            text[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
        text = text or bytearray(b"{")
    only_damage(bytes(text), data.draw(st.integers(0, 300)))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(text):
    assert only_damage(b"{" + text, 1 + len(text)) is None


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text("abc.0/", min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=4), max_size=6
    )
)
def test_what_is_written_is_read(tmp_path_factory, shapes):
    shapes = {n: s for n, s in shapes.items() if ".." not in n.split("/") and not n.startswith("/")}
    arrays = {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) for n, s in shapes.items()}
    path = attacks.write_safetensors(tmp_path_factory.mktemp("x") / "x.safetensors", arrays)
    file = SafetensorsFile(path)
    assert file.specs.keys() == arrays.keys()
    for name, array in arrays.items():
        out = np.empty(array.size, np.float32)
        file.read(name, 0, out)
        assert np.array_equal(out.reshape(array.shape), array)
