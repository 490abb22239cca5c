"""Top-k routing as it is told: one choice after the other."""


def fill(gates, k, slots, batch_priority):
    """Who is in each expert's slots, by going through choices, then tokens."""
    S, E = gates.shape
    order, full = list(range(S)), [[] for _ in range(E)]
    if batch_priority:
        order.sort(key=lambda s: -gates[s].max())
    where = [[None] * k for _ in range(S)]
    for j in range(k):
        for s in order:
            e = sorted(range(E), key=lambda e: -gates[s, e])[j]
            if len(full[e]) < slots:
                where[s][j] = (e, len(full[e]))
                full[e].append(s)
    return full, where
