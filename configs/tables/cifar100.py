"""Like the CIFAR-10 table: WideResNet-28-10 of uncertainty-baselines, fine-tuned ViT, V-MoE, E3."""

from configs.tables import cifar10


def get_table() -> dict:
    """As for CIFAR-10."""
    return cifar10.get_table("cifar100", "CIFAR-100", near="cifar10")
