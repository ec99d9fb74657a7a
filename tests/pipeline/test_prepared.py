import numpy as np
import pytest

from pipeline.errors import TestSetError, UserError
from pipeline.images import write_png
from pipeline.prepared import Entry, Frame, load_samples, pixel_sha256, write_prepared


def entry(name, split="train", size=(40, 50), labelled=True):
    rng = np.random.default_rng(len(name))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    vessels = image[..., 0] > 200 if labelled else None
    return Entry(Frame(name, image, vessels, image[..., 1] >= 0), split, f"raw/{name}.tif")


@pytest.fixture
def development(tmp_path):
    folder = tmp_path / "development"
    write_prepared(folder, [entry("b"), entry("aa", "validation"), entry("ccc, d", size=(33, 60))])
    return folder


def test_what_is_written_is_read_again(development):
    samples = load_samples(development, "train")
    assert [sample.id for sample in samples] == ["b", "ccc, d"]
    for sample in samples:
        expected = entry(sample.id, size=(sample.height, sample.width))
        frame = sample.load()
        assert np.array_equal(frame.image, expected.frame.image)
        assert np.array_equal(frame.vessels, expected.frame.vessels)
        assert frame.vessels.dtype == bool and frame.fov.all()
        assert sample.sha256 == pixel_sha256(frame.image)
        assert sample.source == expected.source
    assert [sample.id for sample in load_samples(development, "validation")] == ["aa"]


def test_manifest_is_sorted_and_independent_of_the_order(development, tmp_path):
    write_prepared(tmp_path / "x", [entry("ccc, d", size=(33, 60)), entry("b"), entry("aa", "validation")])
    lines = (development / "manifest.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,split,image,vessels,fov,width,height,sha256,source"
    assert lines[1].startswith("aa,validation,images/aa.png,vessels/aa.png,fov/aa.png,50,40,")
    assert (tmp_path / "x" / "manifest.csv").read_bytes() == (development / "manifest.csv").read_bytes()


def test_the_test_set_has_to_be_asked_for(tmp_path):
    write_prepared(tmp_path, [entry("a", "test"), entry("b", "unlabelled", labelled=False)])
    for split in ("test", "unlabelled"):
        with pytest.raises(TestSetError, match="only evaluate and report"):
            load_samples(tmp_path, split)
    assert [sample.id for sample in load_samples(tmp_path, "test", allow_test=True)] == ["a"]
    (unlabelled,) = load_samples(tmp_path, "unlabelled", allow_test=True)
    assert unlabelled.vessels is None and unlabelled.load().vessels is None


def test_only_unlabelled_may_be_empty(development, tmp_path):
    write_prepared(tmp_path / "test", [entry("a", "test")])
    assert load_samples(tmp_path / "test", "unlabelled", allow_test=True) == []
    with pytest.raises(UserError, match="no image of the split `train`"):
        load_samples(tmp_path / "test", "train")


def test_writing_refuses_double_ids_and_mixed_sets(tmp_path):
    with pytest.raises(ValueError, match="'a' occurs twice"):
        write_prepared(tmp_path / "1", [entry("a"), entry("a", "validation")])
    with pytest.raises(ValueError, match="different folders"):
        write_prepared(tmp_path / "2", [entry("a"), entry("b", "test")])


def test_a_missing_manifest_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.csv: missing.*`prepare`"):
        load_samples(tmp_path, "train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,split", "name,split", "columns name, split"),
        ("aa,validation", "aa,valid", "line 2: split 'valid'"),
        (",50,40,", ",50,4x,", "size '50'×'4x'"),
        ("images/b.png", "images/zz.png", "no file 'images/zz.png'"),
        ("images/b.png", "../development/images/b.png", "no file '../development"),
        ("vessels/b.png", "", "split train with vessels ''"),
        ("fov/b.png", "", "no file ''"),
        ("b,train,", "aa,train,", "an id occurs twice"),
        ("b,train,", "b,test,", "development and test splits in one folder"),
        ("b,train,", "b,", "not 9 fields"),
    ],
)
def test_a_wrong_manifest_is_reported(development, old, new, message):
    manifest = development / "manifest.csv"
    text = manifest.read_text(encoding="utf-8")
    assert old in text
    manifest.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_samples(development, "train")
    assert message in str(caught.value)


def test_every_wrong_line_is_reported(development):
    (development / "images" / "b.png").unlink()
    (development / "fov" / "aa.png").unlink()
    with pytest.raises(UserError, match="2 problems"):
        load_samples(development, "train")


def test_a_file_of_another_size_is_reported(development):
    write_png(development / "fov" / "b.png", np.ones((10, 12), bool))
    sample = load_samples(development, "train")[0]
    with pytest.raises(UserError, match=r"fov/b\.png: 12×10 pixels; manifest\.csv says 50×40"):
        sample.load()


def test_the_pixel_hash_tells_shapes_apart():
    image = np.zeros((4, 6, 3), np.uint8)
    assert pixel_sha256(image) != pixel_sha256(image.reshape(6, 4, 3))
