"""Names of metrics: parts such as ('ood', 'kmnist', 'auroc_entropy'), joined where they are stored.

metrics.json, scores.npz and table columns use `ood/kmnist/auroc_entropy`. A part may be any name of
a data set in a config, so separators within it are percent-encoded in the joined name:
`mnist_corrupted/shot_noise` becomes `mnist_corrupted%2Fshot_noise`.
"""

import re
import urllib.parse
from collections.abc import Collection

FITTED = "fitted"  # the first part of names of arrays that are not metrics: `prediction.fitted`

# The separator, the escape, NUL (ends a name in a zip archive), and surrogates (not UTF-8).
_RESERVED = re.compile(r"[/%\x00-\x1f\x7f\ud800-\udfff]")


def join(*parts: str) -> str:
    """The stored name of a metric; `split` is its inverse."""
    return "/".join(_RESERVED.sub(_encoded, part) for part in parts)


def split(key: str) -> tuple[str, ...]:
    """The parts of a stored name."""
    return tuple(
        urllib.parse.unquote(part, errors="surrogatepass") if "%" in part else part
        for part in key.split("/")
    )


def _encoded(match: re.Match) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def named(key: str, group: str) -> tuple[str, str] | None:
    """`(name, last part)` of a key of the group, such as ('kmnist', 'entropy'); None for others.

    All parts between the group and the last part are one name: older files did not encode '/'.
    """
    first, *name, last = split(key) if "/" in key else (key, "")
    return ("/".join(name), last) if first == group and name else None


def among(key: str, names: Collection[str]) -> bool:
    """Whether a key matches one of the names, in which a part `*` matches one part or more."""
    if key in names:
        return True
    parts = split(key)
    for name in names:
        if "*" in (pattern := split(name)):
            i, rest = pattern.index("*"), len(pattern) - pattern.index("*") - 1
            if len(parts) > i + rest and parts[:i] + parts[len(parts) - rest :] == (
                pattern[:i] + pattern[i + 1 :]
            ):
                return True
    return False
