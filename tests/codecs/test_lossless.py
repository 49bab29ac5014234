import doctest

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasmith.codecs import lossless as module
from deltasmith.codecs import word_blocks
from deltasmith.codecs.lossless import BLOCK, Lossless
from deltasmith.codecs.protocol import Cell, Held, read_any
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES

CODEC = Lossless()
HEAD, GROUP = 2, 8  # bytes before the groups, and of one


def cell_of(size, name="bfloat16"):
    return Cell(Spec("w", (size,), DTYPES[name]))


def student(size, seed=0):
    """A fine-tune in bfloat16: base N(0, 0.02²), changes Student-t with three degrees of freedom times 4e-4."""
    random = np.random.default_rng(seed)
    base = (random.standard_normal(size) * 0.02).astype(ml_dtypes.bfloat16)
    model = (base.astype(np.float64) + 4e-4 * random.standard_t(3, size)).astype(ml_dtypes.bfloat16)
    return model.view(np.uint16), base.view(np.uint16)


def spent(arrays):
    return sum(a.nbytes for a in arrays.values())


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("near", [True, False])
def test_every_element_type_and_every_bit_pattern(name, near):
    word = np.dtype(f"u{DTYPES[name].itemsize}")
    random = np.random.default_rng(7)
    words = np.frombuffer(random.bytes(3000 * word.itemsize), word).copy()
    words[:2] = 0, np.iinfo(word).max
    if word.itemsize == 2:
        words[: 1 << 11] = np.arange(1 << 16, dtype=np.uint16)[:: 1 << 5]
    steps = random.integers(-3, 4, words.size).astype(np.int64).astype(word)
    predicted = words + steps if near else np.frombuffer(random.bytes(words.nbytes), word)
    cell = cell_of(words.size, name)
    arrays = CODEC.encode(words, cell, predicted)
    assert CODEC.decode(arrays, cell, predicted).tobytes() == words.tobytes()
    assert spent(arrays) <= words.nbytes + 5
    if near:
        assert spent(arrays) < 0.7 * words.nbytes or word.itemsize == 1


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_nan_payloads_and_the_sign_of_zero_survive(name):
    dtype = DTYPES[name]
    word = np.dtype(f"u{dtype.itemsize}").type
    sign, top = word(1 << (8 * dtype.itemsize - 1)), word(np.iinfo(word).max)
    words = np.array([0, sign, top, top ^ sign, top - word(1), sign | word(1)], word)
    cell = cell_of(6, name)
    for predicted in (np.zeros(6, word), words[::-1].copy(), np.full(6, top)):
        assert (
            CODEC.decode(CODEC.encode(words, cell, predicted), cell, predicted).tobytes() == words.tobytes()
        )


def test_without_a_base_the_exponents_alone_are_compressed():
    model, _ = student(100_000)
    arrays = CODEC.encode(model, cell_of(model.size))
    assert CODEC.decode(arrays, cell_of(model.size)).tobytes() == model.tobytes()
    assert spent(arrays) * 8 / model.size < 11.2  # 8 bits of sign and fraction, and 2.6 of exponent


def test_an_unchanged_tensor_takes_four_bytes_per_block():
    words = np.arange(3 * BLOCK + 5).astype(np.uint16)
    arrays = CODEC.encode(words, cell_of(words.size), words)
    assert spent(arrays) == 16
    assert np.array_equal(CODEC.decode(arrays, cell_of(words.size), words), words)


@pytest.mark.parametrize(("density", "bits"), [(1e-5, 0.002), (0.01, 0.105), (0.1, 0.66), (0.2, 1.07)])
def test_the_fewer_change_the_less_it_takes(density, bits):
    """The entropy of where, and a bit for up or down: .0002, .091, .569, .922."""
    _, base = student(BLOCK, 1)
    random = np.random.default_rng(2)
    step = np.where(random.random(BLOCK) < 0.5, 1, -1) * (random.random(BLOCK) < density)
    model = (base.astype(np.int32) + step).astype(np.uint16)
    arrays = CODEC.encode(model, cell_of(BLOCK), base)
    assert spent(arrays) * 8 / BLOCK < bits
    assert np.array_equal(CODEC.decode(arrays, cell_of(BLOCK), base), model)


def test_lies_about_the_few_that_changed_are_value_errors():
    _, base = student(10_000, 1)
    model = base.copy()
    model[[5, 700, 9000]] += 1
    arrays = CODEC.encode(model, cell_of(10_000), base)
    stream = arrays["stream"]
    assert stream[0] == 2
    for offset, value in [(0, 1), (1, 2), (1, 4), (4, 255), (5, 0), (8, 255), (9, 3), (13, 254), (-5, 3)]:
        lie = stream.copy()
        lie[offset] ^= value
        if not np.array_equal(lie, stream):
            refuse = {**arrays, "stream": lie}
            with pytest.raises(ValueError, match="block 0"):
                CODEC.decode(refuse, cell_of(10_000), base)


def test_student_fine_tunes_take_ten_percent_less_than_xor_and_zstd():
    """Both as bytes in their order, and as two planes; at the same block size and over the whole tensor."""
    model, base = student(BLOCK, 2)
    ours = spent(CODEC.encode(model, cell_of(BLOCK), base))
    changed = (model ^ base).view(np.uint8)
    for level in (1, 3):
        zstd = zstandard.ZstdCompressor(level=level)
        plain = len(zstd.compress(changed.tobytes()))
        planes = sum(len(zstd.compress(changed[at::2].tobytes())) for at in (0, 1))
        assert ours < 0.70 * plain
        assert ours < 0.85 * planes
    assert ours * 8 / BLOCK < 5.6  # the entropy given the base's exponent is 5.36 bits


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_range_over_block_borders(data):
    size = 2 * BLOCK + 1000
    model, base = student(size, 3)
    arrays = CODEC.encode(model, cell_of(size), base)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, min(size, start + BLOCK + 9)))
    decoder = CODEC.decoder(cell_of(size), Held(arrays))
    out = np.empty(stop - start, np.uint16)
    read_any(decoder, size, start, out, lambda first, last: base[first:last])
    assert np.array_equal(out, model[start:stop])


def test_a_read_of_less_than_a_block_asks_for_its_predictions():
    model, base = student(BLOCK + 9)
    decoder = CODEC.decoder(cell_of(model.size), Held(CODEC.encode(model, cell_of(model.size), base)))
    for start, size in ((1, BLOCK - 1), (0, BLOCK - 1), (BLOCK, 8)):
        with pytest.raises(ValueError, match="not whole blocks"):
            decoder.read(start, np.empty(size, np.uint16), base[start : start + size])


def test_unaligned_and_read_only_words_are_taken_as_well():
    model, base = student(5000, 4)
    raw = b"x" + base.tobytes()
    crooked = np.frombuffer(raw, np.uint16, 5000, 1)
    arrays = CODEC.encode(np.frombuffer(model.tobytes(), np.uint16), cell_of(5000), crooked)
    out = np.zeros(10_001, np.uint8)[1:].view(np.uint16)
    CODEC.decoder(cell_of(5000), Held(arrays)).read(0, out, crooked)
    assert np.array_equal(out, model)


def test_blocks_from_many_threads_are_those_from_one():
    from concurrent.futures import ThreadPoolExecutor

    model, base = student(6 * BLOCK, 5)
    encoder = CODEC.encoder(cell_of(model.size))

    def coded(start):
        return encoder.encode(start, model[start : start + BLOCK], base[start : start + BLOCK]).parts[
            "stream"
        ]

    starts = range(0, model.size, BLOCK)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(coded, starts)) == [coded(s) for s in starts]
    arrays = CODEC.encode(model, cell_of(model.size), base)
    decoder = CODEC.decoder(cell_of(model.size), Held(arrays))

    def read(start):
        out = np.empty(BLOCK, np.uint16)
        decoder.read(start, out, base[start : start + BLOCK])
        return np.array_equal(out, model[start : start + BLOCK])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, starts))


def spoiled(change):
    """Change the bytes of a block and decode it; the index follows its length."""
    model, base = student(20_000, 6)
    arrays = CODEC.encode(model, cell_of(model.size), base)
    data = bytearray(arrays["stream"].tobytes())
    data = bytes(change(data) or data)
    stream = np.frombuffer(data, np.uint8)
    index = np.array([stream.size], np.uint32)
    return CODEC.decode({"index": index, "stream": stream}, cell_of(model.size), base)


def frames_of(data):
    """Return where the lengths of the frames stand, where the first frame begins, and the lengths."""
    groups = data[1]
    count = sum(data[HEAD + GROUP * g + 3] == 0 for g in range(groups))
    at = HEAD + GROUP * groups
    return (
        at,
        at + 4 * count,
        [int.from_bytes(data[at + 4 * f : at + 4 * f + 4], "little") for f in range(count)],
    )


def test_a_frame_that_declares_more_is_refused_before_it_is_opened(monkeypatch):
    def bomb(data):
        at, body, lengths = frames_of(data)
        frame = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))
        assert len(frame) < 20_000
        data[body : body + lengths[0]] = frame
        data[at : at + 4] = len(frame).to_bytes(4, "little")

    def opened(*_, **__):
        raise AssertionError("the frame was opened")

    class Guard:
        decompress = opened

    monkeypatch.setattr(word_blocks.zstandard, "ZstdDecompressor", Guard)
    with pytest.raises(ValueError, match="declares 268435456 bytes instead of"):
        spoiled(bomb)


def test_a_frame_that_hides_its_size_is_refused():
    def hidden(data):
        at, body, lengths = frames_of(data)
        frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
        data[body : body + lengths[0]] = frame
        data[at : at + 4] = len(frame).to_bytes(4, "little")

    with pytest.raises(ValueError, match="declares -1 bytes"):
        spoiled(hidden)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 3, "unknown kind 3"),
        (0, 2, "changed words do not fit"),
        (0, 0, "bytes instead of 40000"),
        (1, 0, "not in order"),
        (1, 200, "block 0"),
        (2, 1, "not in order"),
        (4, 9, "more bits than there are"),
        (5, 1, "impossible"),
        (6, 77, "block 0"),
        (HEAD + GROUP, 0, "block 0"),
    ],
)
def test_every_lie_in_a_head_is_a_value_error(offset, value, message):
    def lie(data):
        assert data[offset] != value
        data[offset] = value

    with pytest.raises(ValueError, match=message):
        spoiled(lie)


def test_truncation_and_additions_are_value_errors():
    for cut in (1, 2, 30, 3000):
        with pytest.raises(ValueError, match="block 0"):
            spoiled(lambda data, cut=cut: data[:-cut])
    with pytest.raises(ValueError, match="1 bytes too many"):
        spoiled(lambda data: data + b"x")
    with pytest.raises(ValueError, match="longer than its elements"):
        spoiled(lambda data: data + bytes(40_000))
    model, base = student(1000)
    arrays = CODEC.encode(model, cell_of(1000), base)
    with pytest.raises(ValueError, match="not what its index says"):
        CODEC.decode({**arrays, "stream": arrays["stream"][:-1]}, cell_of(1000), base)
    with pytest.raises(ValueError, match="holds 2 blocks instead of 1"):
        CODEC.decode({**arrays, "index": np.array([0, 0], np.uint32)}, cell_of(1000), base)


def test_another_base_is_an_error_or_other_words_but_never_more():
    model, base = student(20_000, 8)
    arrays = CODEC.encode(model, cell_of(model.size), base)
    with pytest.raises(ValueError, match="block 0"):
        CODEC.decode(arrays, cell_of(model.size), np.zeros_like(base))
