"""A UsageError keeps its sentence, wherever it was raised; other errors keep their traceback."""

import pytest
from torch.utils.data import DataLoader, Dataset

from msctr_hf import load_segmentation_dataset
from msctr_hf.errors import UsageError, as_usage_error, brief_reason, shorten


class Faulty(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error


def test_a_sentence_raised_in_a_worker_process_arrives_unchanged():
    sentence = "The file a: b.png cannot be read: it is\nempty."
    with pytest.raises(UsageError) as caught:
        next(iter(DataLoader(Faulty(UsageError(sentence)), num_workers=1)))
    assert str(caught.value) == sentence


def test_other_errors_of_a_worker_show_where_they_were_raised():
    with pytest.raises(ValueError, match=r"test_errors\.py") as caught:
        next(iter(DataLoader(Faulty(ValueError("zip")), num_workers=1)))
    assert not isinstance(caught.value, UsageError)


def test_only_the_given_exceptions_are_converted():
    with (
        pytest.raises(UsageError, match=r"^The disk: is full$") as caught,
        as_usage_error(OSError, prefix="The disk: "),
    ):
        raise OSError("is full\nin every way")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(UsageError, match=r"^as it is$"), as_usage_error(ValueError, prefix="never: "):
        raise UsageError("as it is")
    with pytest.raises(KeyError), as_usage_error(OSError):
        raise KeyError


def test_library_functions_name_their_own_arguments():
    with pytest.raises(UsageError, match="cityscapes needs `data_dir`, the folder that contains it"):
        load_segmentation_dataset("cityscapes", "train")


def test_a_long_reason_is_cut_between_words():
    assert brief_reason(OSError("the disk is full\nin every way")) == "the disk is full"
    reason = brief_reason(OSError("again " * 100))
    assert len(reason) <= 300
    assert set(reason.split()) == {"again", "..."}


@pytest.mark.parametrize("length", [5, 40, 80, 300])
def test_a_long_text_is_never_cut_inside_a_word(length):
    for text in (f"/data/{'folder' * 20}/labels.parquet is damaged", "{'first': Value('string'), " * 30):
        *words, dots = shorten(text, length).split()
        assert words == text.split()[: len(words)]
        assert words and dots == "..." or [*words, dots] == text.split()
        assert len(shorten(text, length)) <= max(length, len(words[0]) + 4)
    assert shorten(" short  text\n") == "short text"
    assert shorten("") == ""
