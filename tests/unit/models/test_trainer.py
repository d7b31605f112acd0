"""Fine-tuning with transformers' Trainer."""

import pytest
import torch
from tests.support.networks import SIZE, build, images
from torch import Tensor
from transformers import Trainer, TrainingArguments

LABELS = {
    "single_label_classification": torch.arange(8) % 4,
    "multi_label_classification": (torch.arange(32).view(8, 4) % 3 == 0).float(),
}


def one_step(model, labels: Tensor, batch_size: int, folder) -> tuple[float, dict[str, Tensor]]:
    """Loss that is logged and change of every parameter in one step over 8 images."""
    pixels = images(8, 3, SIZE, SIZE)
    data = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(pixels, labels, strict=True)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        max_steps=1,
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    after = model.state_dict()
    moved = {name: after[name] - before[name] for name, _ in model.named_parameters()}
    return trainer.state.log_history[0]["loss"], moved


@pytest.mark.parametrize("problem", LABELS)
def test_accumulation_changes_neither_loss_nor_gradient(network, problem, tmp_path):
    results = []
    for batch_size in (8, 2):
        model = build(network.classifier, network.config(num_labels=4, problem_type=problem))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # Statistics of a batch would differ with its size.
                module.train = lambda mode, norm=module: norm
        results.append(one_step(model, LABELS[problem], batch_size, tmp_path))
    (loss, moved), (accumulated_loss, accumulated) = results
    assert accumulated_loss == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(accumulated, moved, atol=1e-4, rtol=1e-3)
