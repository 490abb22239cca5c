"""uncertainty-baselines' CIFAR-100 table, as far as there are rows here: WideResNet-28-10."""

from configs.tables import cifar10


def get_table() -> dict:
    """As CIFAR-10's."""
    return cifar10.get_table("cifar100", "CIFAR-100", near="cifar10")
