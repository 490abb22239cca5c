"""Every use of random numbers that has its own key.

`fold(key, Use.NOISE)` is the key of that use. Small numbers are folded in for counts (particles,
steps, samples) and by `jax.random.split`, whose i-th key equals folding in i; so each use has a
large number, made from four letters of its name.
"""

import enum

import jax


@enum.unique
class Use(enum.IntEnum):
    """The uses, grouped by the key that they are folded into."""

    # of a particle's key
    HYPER = 0x68797072  # its hyper-parameters; the i-th of them has HYPER + i
    OWN = 0x6F776E70  # parameters of the objective's own
    AFTER = 0x61667465  # a stage of further training
    SWAG = 0x73776167  # draws of SWAG; of each of them:
    LOW_RANK = 0x72616E6B  # its low-rank part
    FUNCTIONS = 0x66756E63  # draws of functions for joint predictions
    # of a particle's key of a step
    NOISE = 0x6E6F6973  # of a sampler
    INPUTS = 0x6F626A65  # where an objective moves the inputs
    STUDENT = 0x73747564  # forward pass of the student at another stream
    TEACHER = 0x74656163  # forward pass of the teacher
    VIEW = 0x76696577  # noise of the student's inputs
    STREAM_VIEW = 0x73747276  # and at another stream
    OTHER_VIEW = 0x6F766965  # noise of the teacher's inputs
    CONSISTENCY = 0x636F6E73  # draws that make the probabilities of both
    COMPARED = 0x636F6D70  # forward pass where functions are compared
    ALIKE = 0x616C696B  # draws that make the probabilities of all of them
    VIEWS = 0x76777320  # augmentation of views; that of the i-th has VIEWS + i
    MOVES = 0x6D6F7665  # elements of a symmetry by which views are moved; the i-th has MOVES + i
    SIZES = 0x73697A65  # forward pass of the views of one size; of the i-th size SIZES + i
    ELEMENTS = 0x656C656D  # elements that are predicted
    PREDICTED = 0x70726564  # augmentation of the images of which they are predicted
    PREDICTION = 0x616E7377  # forward pass that predicts them
    # of particle 0's key of a step, for all particles
    POINTS = 0x706F696E  # context points
    DRAWS = 0x64726177  # draws that make probabilities
    PRIOR_DRAWS = 0x7072696F  # functions drawn from the prior


def fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Folds a number, such as a `Use`, into a key or keys [P]."""
    number = int(number) if isinstance(number, Use) else number
    if keys.ndim == 0:
        return jax.random.fold_in(keys, number)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
