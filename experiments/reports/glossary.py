"""One line of definition for every metric: for the report, and for docs/metrics.md.

A name is looked up in order; `*` stands for any text, such as the name of a data set, a class, or
the label of a method in a config.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from html import escape

from experiments.reports.study import Column, one_line

RANKS = {
    "auroc": "P(score out > score in) + P(equal) / 2",
    "aupr_out": "Average precision with OOD examples as the positives",
    "aupr_in": "Average precision with in-distribution examples as the positives",
    "fpr95_in": "Share of OOD examples accepted at the threshold that accepts 95 % of the others",
    "fpr95": "Share of in-distribution examples rejected where 95 % of the OOD ones are",
    "ratio": "Mean over the OOD set divided by that over the test set",
}
SCORES = {
    "entropy": "entropy of the mixture",
    "max_probability": "1 - the largest probability of the mixture",
    "mutual_information": "mutual information of label and member",
    "probability_std": "standard deviation of the probabilities over members, mean over classes",
    "max_logit": "minus the largest mean logit",
    "dempster_shafer": "K / (K + sum_k exp(u_k)), mean over members",
    "predictive_variance": "of targets, the variance of the mixture; of several the mean, each in "
    "units of its variance in the test set",
    "epistemic_variance": "epistemic variance of the latents, mean over members and classes; of "
    "targets, the variance of the members' means in the same units",
    "aleatoric_variance": "of targets, the mean of the members' variances in the same units",
    "noise_std": "standard deviation of the latents' noise",
    "dice": "minus the log-sum-exp of logits by the most important weights",
    "energy": "minus the log-sum-exp of the logits",
    "grad_norm": "minus the norm of the gradient of the KL divergence from uniform",
    "kl_matching": "least KL divergence from a class's mean prediction",
    "knn": "distance to the k-th nearest training features, normalised",
    "layers_mahalanobis": "sum of the Mahalanobis distances of several layers' features",
    "mahalanobis": "Mahalanobis distance of the features to the nearest class mean",
    "odin": "1 - the largest probability at a temperature, for an input moved towards confidence",
    "react": "minus the log-sum-exp of logits of clipped features",
    "relative_mahalanobis": "Mahalanobis distance minus that to the mean of all classes",
    "residual": "norm of the features outside of their principal subspace",
    "vim": "residual as a virtual logit, minus the log-sum-exp of the logits",
    "epistemic_std": "standard deviation of the latents that more data would reduce",
}
INFINITE = "Share of infinite thresholds, for want of calibration examples"
OF_SETS = {
    "coverage": "Share of examples whose set has the label",
    "size": "Mean number of classes in a set",
    "empty": "Share of empty sets",
    "single": "Share of sets with one class",
    "whole": "Share of sets with all classes",
    "class_coverage_gap": "Mean over classes of |coverage of the class - (1 - alpha)|",
    "worst_class_coverage": "Smallest coverage of a class",
    "size_coverage_violation": "Largest |coverage - (1 - alpha)| over strata of set sizes (SSCV)",
    "group_coverage_gap": "Mean over groups of |coverage of the group - (1 - alpha)|",
    "worst_group_coverage": "Smallest coverage of a group",
    "expected_low": "Lower end of the 95 % range of the coverage of a valid method",
    "expected_high": "Upper end of the 95 % range of the coverage of a valid method",
    "calibration_examples": "Held-out examples that set the threshold",
    "unbounded": f"{INFINITE}: whole sets",
}
ERRORS = {
    "accuracy": "Share of examples whose most probable class is the label; ties: the first",
    "nll": "-mean log p(label) of the mixture",
    "brier": "Mean over examples of sum_k (p_k - [k is the label])^2, from 0 to 2",
    "ece": "sum_j n_j / B |confidence_j - accuracy_j| over bins of equal width of the confidence",
    "ece_mass": "ECE over bins with equal numbers of examples",
    "ece_classwise": "Mean over classes of the ECE of p_k against the rest, bins of equal width",
    "smooth_ece": "Integral of the kernel-smoothed |accuracy - confidence|, whose bandwidth is its "
    "value",
}


def _of(what: str, text: str) -> str:
    """'After calibration: mean of ...'; acronyms remain."""
    return f"{what}: {text if text[1].isupper() else text[0].lower() + text[1:]}"


# Group -> pattern of a name in it -> definition.
ENTRIES: Mapping[str, Mapping[str, str]] = {
    "classification": {
        **{name: ERRORS[name] for name in ("accuracy", "nll", "brier")},
        "member_nll": "Mean of the members' own NLLs; at least the NLL of the mixture",
        "nll_of_mean": "-log of the mean over examples of p(label); never above the NLL",
    },
    "calibration": {
        **{name: ERRORS[name] for name in ("ece", "ece_mass", "ece_classwise", "smooth_ece")},
        "ece_adaptive": "Mean over classes of the ECE of p_k in bins of equal mass (ACE)",
        "debiased_error": "Root of sum_j n_j / B [(confidence_j - accuracy_j)^2 - its variance], "
        "bins of equal mass",
        "mce": "Largest |confidence_j - accuracy_j| over bins of equal width",
        "mce_mass": "Largest |confidence_j - accuracy_j| over bins of equal mass",
        "brier_uncertainty": "Brier score of the classes' frequencies as forecast",
        "brier_resolution": "How far the frequencies in bins are from the overall ones; higher is "
        "better",
        "brier_reliability": "Mean squared distance of forecasts and frequencies in bins",
        "class/*/ece": "ECE of p_k of this class against the rest",
        "class/*/ece_low": "Lower end of its bootstrap interval",
        "class/*/ece_high": "Upper end of its bootstrap interval",
        "group/*/examples": "Examples of this group",
        "group/*/accuracy": "Accuracy within this group",
        "group/*/overconfidence": "Mean confidence minus accuracy within this group",
        "group/*/ece": "ECE within this group",
        "worst_group_ece": "Largest ECE of a group",
        "worst_group_accuracy": "Smallest accuracy of a group",
    },
    "selective": {
        "aurc": "Mean over k of the error rate among the k most confident examples",
        "excess_aurc": "AURC minus that of the best order of the same answers",
        "augrc": "Mean over k of the errors among the k most confident examples, divided by B",
        "coverage_at_*_error": "Largest share of most confident examples with this error rate",
    },
    "uncertainty": {
        "entropy": "Mean entropy of the mixture",
        "mutual_information": "Entropy of the mixture minus the members' mean entropy",
        "disagreement": "Probability that two members differ in their most probable class",
        "pairwise_kl": "Mean KL divergence between two members",
    },
    "regression": {
        "nll": "-mean log density of the targets under the mixture, in the stored units",
        "member_nll": "Mean of the members' own NLLs",
        "rmse": "Root mean squared error of the mixture's mean, in the stored units",
        "crps": "Continuous ranked probability score of the mixture, in the stored units",
        "calibration": "Mean over levels of |coverage - level| of central intervals",
        "coverage_*": "Share of targets in the mixture's central interval of this level",
        "width_*": "Mean width of the mixture's central interval of this level, in stored units",
    },
    "intervals": {
        "*/coverage": "Share of targets within the interval",
        "*/width": "Mean width of the interval, in the stored units",
        "*/worst_group_coverage": OF_SETS["worst_group_coverage"],
        "*/expected_low": OF_SETS["expected_low"],
        "*/expected_high": OF_SETS["expected_high"],
        "*/unbounded": f"{INFINITE}: intervals without end",
    },
    "regions": {
        "*/coverage": "Share of examples all of whose targets lie in the region",
        "*/volume": "Mean volume of the region, of two targets its area, in the product of their "
        "stored units",
        "*/worst_group_coverage": OF_SETS["worst_group_coverage"],
        "*/expected_low": OF_SETS["expected_low"],
        "*/expected_high": OF_SETS["expected_high"],
        "*/unbounded": f"{INFINITE}: regions without end",
    },
    "posthoc": {
        **{f"*/{name}": _of("After calibration", text) for name, text in ERRORS.items()},
        "*/temperature": "Fitted temperature; above 1 the model was too confident",
        "*/at_bound": "1 if the best temperature lies outside of the allowed range",
        "*/converged": "1 if the gradient is 0 at the fitted parameters",
        "*/floor": "Least probability of a class before normalisation",
        "*/crps": "After calibration: CRPS of the mixture, in the stored units",
        "*/rmse": "After calibration: RMSE of the mixture's mean, in the stored units",
        "*/calibration": "After calibration: mean over levels of |coverage - level| of intervals",
        "*/coverage_0.9": "After calibration: share of targets in the central 90 % interval",
        "*/width_0.9": "After calibration: mean width of the central 90 % interval",
        "*/scale": "Fitted factor of the standard deviation; above 1 the model was too sure",
    },
    "conformal": {f"*/{name}": text for name, text in OF_SETS.items()},
    "halves": {  # calibrated on one half of the data and measured on the other, in turn
        **{name: _of("After calibration", ERRORS[name]) for name in ("nll", "brier", "ece")},
        "temperature": "Mean of the fitted temperatures of both halves",
        "human_nll": "After calibration: mean NLL of people's votes",
        "human_kl": "After calibration: mean KL divergence of the mixture from people's votes",
        "*/size_raw": f"{OF_SETS['size']}, from probabilities as they are",
        "*/size": f"{OF_SETS['size']}, after calibration",
        "*/coverage": OF_SETS["coverage"],
        "*/coverage_class": OF_SETS["worst_class_coverage"],
    },
    "human": {
        "nll": "-sum_k q_k log p_k for the shares q of people's votes, mean over examples",
        "kl": "sum_k q_k log(q_k / p_k), mean over examples",
        "entropy": "Mean entropy of the votes, the least possible NLL",
        "spearman": "Rank correlation of the entropies of the mixture and of the votes",
        "auroc": "AUROC of the mixture's entropy for examples on which a tenth of the votes "
        "or more differ from the most frequent class",
    },
    "joint": {
        "dyadic_nll": "-log of the mean over functions of the joint probability of tau labels "
        "that are drawn from a pair of examples",
        "dyadic_nll_per_input": "The same divided by tau",
        "dyadic_gain": "tau times the NLL minus the dyadic one: what joint predictions know more",
        "nll": "-log of the mean over functions of the joint probability of tau labels",
        "nll_per_input": "The same divided by tau",
        "functions": "Members, or draws of functions of all of them",
        "halves/dyadic_nll": "The dyadic one of members at one temperature, fitted to the other "
        "half of the examples",
        "halves/dyadic_gain": "At that temperature: tau times the NLL minus the dyadic one",
        "halves/nll": "The one of tau labels at that temperature",
        "halves/temperature": "Mean of the fitted temperatures of both halves",
    },
    "corruption": {
        "fitted/accuracy": "The same as without a temperature; the mean over kinds and severities",
        "fitted/nll": "NLL at the temperature that clean examples gave; the mean over both",
        "fitted/ece": "ECE at that temperature; the mean over both",
        "*accuracy": "Accuracy on corrupted examples; the mean over kinds and severities",
        "*nll": "NLL on corrupted examples; the mean over kinds and severities",
        "*ece": "ECE on corrupted examples; the mean over kinds and severities",
        "*rmse": "RMSE on corrupted examples; the mean over kinds and severities",
        "*crps": "CRPS on corrupted examples; the mean over kinds and severities",
        "*coverage_0.9": "Share of targets in the mixture's central 90 % interval on corrupted "
        "examples; the mean over kinds and severities",
    },
    "few_shot": {
        "*_shot_error": "Error of a linear probe of the features with so many examples per class",
        "*_shot_log2_l2": "Its chosen penalty, as a power of 2",
        "error": "Mean over numbers of examples per class and sets",
    },
    "knn": {
        "accuracy": "Accuracy of the vote of the nearest training examples, by the features of all "
        "members",
        "member_accuracy": "The same by the features of each member, mean over members",
    },
    "symmetry": {
        "*/probe_accuracy": "Accuracy of a linear probe of which element moved an image, on frozen "
        "features, mean over members",
        "*/cosine": "Mean cosine of the features of an image and of the moved one, less their mean",
        "*/agreement": "Share of moved images whose most probable class is that of the image",
    },
    "posterior": {
        "*mean_error": "Mean over points of |difference of the means of f| to the reference",
        "*std_error": "Mean over points of |difference of the standard deviations of f|",
        "*std_ratio": "Mean over points of the standard deviation of f over the reference's",
        "*w1": "Mean over points of the Wasserstein-1 distance of the marginals of f",
    },
    "routing": {
        "*/dropped": "Share of tokens that no expert had room for",
        "*/load_max": "Load of the busiest expert over the mean load",
        "*/load_min": "Load of the least busy expert over the mean load",
        "*/mutual_information": "Mutual information of expert and class",
    },
    "kinds": {
        "*/disagreement": "P(the most probable classes of two members of these kinds differ), mean "
        "over pairs",
        "*/error_inconsistency": "P(exactly one of two members of these kinds is right), mean over "
        "pairs",
        "*/accuracy_*": "Accuracy of the mixture of so many members, half of each kind, mean over "
        "choices",
        "*/nll_*": "NLL of the mixture of so many members, half of each kind, mean over choices",
        "*/member_accuracy": "Mean accuracy of the members of this kind",
        "*/member_nll": "Mean NLL of the members of this kind",
        "*/classes_won": "Share of classes whose mean member accuracy is highest with this kind",
        "*/class/*/accuracy": "Mean accuracy of the members of this kind on examples of this class",
    },
    "combination": {
        **{f"*/{name}": _of("Of combined members", text) for name, text in ERRORS.items()},
        "*/members": "Different members that count",
        "*/share/*": "Share of members of this kind, by how much they count",
    },
    "simplicity": {
        **{
            f"{name}/{key}": f"{text}, {of}"
            for name, of in dict(
                standard="on the test set",
                simple_randomised="the simple features being those of other examples",
                complex_randomised="the other features being those of other examples",
            ).items()
            for key, text in dict(
                accuracy="Accuracy of the mixture",
                auc="Area under the ROC curve of each class against the others, mean over classes",
                member_accuracy="Mean accuracy of the members",
                member_auc="Mean over members of the area under the ROC curve",
                best_member="Accuracy of the best member",
            ).items()
        },
        "complex_share": "Share of members above chance where simple features are those of other "
        "examples: they use complex ones",
        "simple_share": "Share of members above chance where complex features are those of other "
        "examples: they use simple ones",
    },
    "cues": {
        "used": "exp of the entropy of the shares of cues among members that use one: the "
        "effective number of cues",
        "none/share": "Share of members that are at chance on the set of every cue",
        "diagonal/accuracy": "Accuracy of the mixture where all cues tell the same class",
        "diagonal/member_accuracy": "Mean accuracy of members where all cues tell the same class",
        "*/accuracy": "Accuracy of the mixture where the label is the value of this cue, and the "
        "others are independent of it",
        "*/member_accuracy": "Mean accuracy of members where the label is the value of this cue",
        "*/share": "Share of members that are best on the set of this cue",
    },
    "disambiguation": {
        "*/accuracy": "Accuracy of the member that is best on so many labelled examples of the "
        "pool, those on which members differ most",
        "*/random_accuracy": "The same with labels of random examples of the pool, mean over draws",
        "best_member": "Largest accuracy of a member",
        "worst_member": "Smallest accuracy of a member",
        "mixture": "Accuracy of all members together",
        "disagreement": "Share of pairs of members with different classes, on the pool",
    },
    "cost": {
        "parameters": "Parameters of all particles",
        "step": "Steps of training",
        "train_seconds": "Seconds of training",
        "train_ms_per_example": "Milliseconds of training for one example",
        "predict_ms_per_example": "Milliseconds of prediction for one example, all members",
        "train_flops_per_example": "FLOPs of training for one example",
        "predict_flops_per_example": "FLOPs of prediction for one example, all members",
        "total_parameters": "Parameters, with those of the networks that computed the inputs",
        "total_predict_flops_per_example": "FLOPs of prediction, with those of these networks",
    },
}
SHIFTED = ("posthoc", "conformal", "intervals", "regions")  # groups with severities of corruption
_RANKED = re.compile(rf"({'|'.join(RANKS)})_(.+)")


def definition(key: str) -> str:
    """The definition of a metric by its stored name; empty for unknown ones."""
    group, _, name = key.partition("/")
    last = name.rpartition("/")[2]
    if group in ("ood", "map"):
        if match := _RANKED.fullmatch(last):
            rank, score = match.groups()
            return f"{RANKS[rank]}. Score: {SCORES.get(score, score.replace('_', ' '))}"
        return f"Mean {SCORES[last]}" if last in SCORES else ""
    entries = ENTRIES.get(group, {})
    plain = re.sub(r"/severity_[^/]+/", "/", name) if group in SHIFTED else name
    text = entries.get(plain) or next(
        (text for pattern, text in entries.items() if fnmatch.fnmatchcase(plain, pattern)), ""
    )
    return f"{text}. Under corruption: the mean over kinds" if text and plain != name else text


def definitions(columns: Iterable[Column]) -> str:
    """Those of the metrics of a table as a folded list in HTML; empty if there are none."""
    items = {column.key: column.header for column in columns}
    lines = "".join(
        f"<dt>{escape(one_line(header))} <code>{escape(key)}</code></dt><dd>{escape(text)}.</dd>"
        for key, header in items.items()
        if (text := definition(key))
    )
    return f"<details><summary>What the metrics are</summary><dl>{lines}</dl></details>" * bool(
        lines
    )


def to_markdown() -> str:
    """All definitions as tables in Markdown, one for each group."""
    parts = []
    for group, entries in ENTRIES.items():
        rows = [f"| `{group}/{name}` | {_cell(text)} |" for name, text in entries.items()]
        parts.append(
            "\n".join([f"### {group}", "", "| name | definition |", "| --- | --- |", *rows])
        )
    rows = [f"| `ood/*/{rank}_<score>` | {_cell(text)} |" for rank, text in RANKS.items()]
    rows += [f"| `<score>` = `{score}` | {_cell(text)} |" for score, text in SCORES.items()]
    parts.append("\n".join(["### ood, map", "", "| name | definition |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
