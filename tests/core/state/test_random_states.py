"""Random generators of the process, put back."""

import random
import subprocess
import sys

import numpy as np

from rankfold.state.random_states import process_states, set_process_states


def test_what_is_drawn_in_between_is_drawn_again() -> None:
    states = process_states()
    first = random.random(), np.random.rand()
    set_process_states({**states, "of another framework": None})
    assert (random.random(), np.random.rand()) == first


def test_numpys_generators_are_not_loaded_for_their_state() -> None:
    code = (
        "import sys; from rankfold.state import random_states as r; "
        "r.set_process_states(r.process_states()); assert 'numpy.random' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
