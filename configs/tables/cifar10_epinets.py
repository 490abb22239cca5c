"""Epinets on frozen ResNets against ensembles of heads and of networks, CIFAR-10."""

from typing import Any

from configs import columns as columns_lib

CONFIG = "configs/cifar/epinets.py"
ROWS = {  # label -> options, of every network
    "Released": "method=released",
    "One head": "method=heads,size=1",
    "Heads (3)": "method=heads,size=3",
    "Heads (10)": "method=heads,size=10",
    "Heads (30)": "method=heads,size=30",
    "Epinet": "method=epinet",
}
MORE = {  # of the largest
    "Heads with random priors (10)": "method=random_priors,size=10",
    "Epinet without prior": "method=no_prior",
}
DEPTHS = (20, 32, 44, 56)
# Near CIFAR-100; far MNIST (test), DTD and GTSRB (subsets).
SETS = dict(cifar100="CIFAR-100", mnist="MNIST", dtd="DTD subset", gtsrb="GTSRB subset")
SCORES = dict(max_probability="MSP", entropy="entropy", mutual_information="MI")


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these networks."""
    rows = [
        dict(group=f"ResNet-{depth}", label=label, config=f"{CONFIG}:{options},depth={depth}")
        for depth in DEPTHS
        for label, options in (ROWS | (MORE if depth == max(DEPTHS) else {})).items()
    ]
    four = "Deep ensemble of the four released"
    rows.append(dict(group="All", label=four, config=f"{CONFIG}:method=together"))
    lower, higher = dict(better="lower"), dict(better="higher")
    columns = [
        dict(key="classification/accuracy", header="Accuracy", unit="%", digits=2, **higher),
        dict(key="classification/nll", header="NLL", digits=4, **lower),
        dict(key="calibration/ece", header="ECE", digits=4, **lower),
        dict(key="selective/aurc", header="AURC", unit="%", digits=3, **lower),
        *columns_lib.joint(),
        dict(key="halves/temperature", header="T", digits=2),
        dict(key="halves/nll", header="NLL at T", digits=4, **lower),
        dict(key="halves/ece", header="ECE at T", digits=4, **lower),
        dict(key="joint/halves/temperature", header="T of members", digits=2),
        *columns_lib.joint(halves=True),
        dict(key="uncertainty/disagreement", header="Disagreement", unit="%", digits=2),
        dict(key="corruption/accuracy", header="Corrupted acc.", unit="%", digits=1, **higher),
        dict(key="corruption/nll", header="Corrupted NLL", digits=3, **lower),
        dict(key="corruption/ece", header="Corrupted ECE", digits=3, **lower),
        dict(key="corruption/fitted/nll", header="Corrupted NLL at T", digits=3, **lower),
        dict(key="corruption/fitted/ece", header="Corrupted ECE at T", digits=3, **lower),
        *(
            dict(key=f"ood/{name}/aupr_out_{score}", header=f"AUPR {title}, {of_score}",
                 digits=3, **higher)
            for score, of_score in SCORES.items()
            for name, title in SETS.items()
        ),
        dict(key="cost/total_parameters", header="Parameters", unit="M", digits=2),
        dict(key="cost/total_predict_flops_per_example", header="FLOPs", unit="M", digits=1),
    ]  # fmt: skip
    return dict(
        title="CIFAR-10: epinets on frozen ResNets, ensembles of heads and of networks",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=columns,
    )
