import pytest
import torch

from msctr_hf import load_segmentation_dataset
from msctr_hf.data.augmentation import TrainingAugmentation
from msctr_hf.data.loaders import ShuffledSampler, evaluation_loader, training_loader

AUGMENTATION = TrainingAugmentation(crop_size=(32, 48), image_mean=[0.5] * 3, image_std=[0.5] * 3)


def batches(num_workers, epoch, count=3):
    dataset = load_segmentation_dataset("synthetic_scenes", "validation")
    loader = training_loader(dataset, AUGMENTATION, batch_size=4, seed=1, num_workers=num_workers)
    loader.sampler.set_epoch(epoch)
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def test_batches_have_the_documented_shapes_and_types():
    batch = batches(0, 0, 1)[0]
    assert batch["pixel_values"].shape == (4, 3, 32, 48)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].shape == (4, 32, 48)
    assert batch["labels"].dtype == torch.int64


def test_images_do_not_depend_on_the_number_of_workers():
    for one, many in zip(batches(0, 2), batches(2, 2), strict=True):
        assert torch.equal(one["pixel_values"], many["pixel_values"])
        assert torch.equal(one["labels"], many["labels"])


def test_order_and_augmentation_change_with_the_epoch():
    sampler = ShuffledSampler(50, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(index for _, index, _ in first) == sorted(index for _, index, _ in second) == list(range(50))
    assert [index for _, index, _ in first] != [index for _, index, _ in second]
    assert not torch.equal(batches(0, 0, 1)[0]["pixel_values"], batches(0, 1, 1)[0]["pixel_values"])


@pytest.mark.parametrize("processes", [1, 3, 7])
def test_the_shares_of_all_processes_cover_every_sample_once(processes):
    dataset = load_segmentation_dataset("synthetic_scenes", "validation")
    seen = [
        sample["image_id"]
        for process in range(processes)
        for samples in evaluation_loader(
            dataset, batch_size=2, num_workers=0, process_index=process, num_processes=processes
        )
        for sample in samples
    ]
    assert sorted(seen) == sorted(dataset.with_format(None)["image_id"][:])
