"""Combinations of members that were trained apart, chosen by predictions of held-out examples.

`name='file'` in a config is the function `file` of `file.py` here,

    file(log_p [M, B, K], labels [B], **fields) -> combination
    combination(log_p [M, B, K]) -> log_p [M', B, K], the members of an ensemble

where the M members are those of any number of runs. A combination is a NamedTuple of arrays, with
`shares` [M], how much each member counts, whose sum is 1. Fits take NumPy or JAX arrays; all is in
NumPy float64. A member that predicts a NaN or an infinite log-probability above 0 for the held-out
examples has no part in a combination, whatever it predicts later.

    greedy   members added one after the other, each the best for the mixture of those before
    winners  the member that is best on the class that all members together predict
    gate     learned weights of the members, which depend on what all members together predict
"""
