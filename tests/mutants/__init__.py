"""Wrong answers that look right, and the points that each must lose.

One module `labNN.py` per lab. It holds two names:

    LAB = "00-start-here"                  # the lesson's folder under lessons/
    MUTANTS = {
        "last-column": {                   # a short name of the mistake
            "exercise": "ex2-class-scores",            # the exercise: grade_id of its solution cell
            "code": "return logits[:, -1, label_ids]",  # replaces the solution region; indentation is added
            "loses": ["ex2-class-scores-hidden"],      # grade_ids of the graded cells that lose points
            "why": "reads the padding's column",       # what is wrong with it, for the reader of a failure
        },
    }

`test_mutants.py` runs every lab with every mutant. A mutant must lose points in exactly the cells in `loses`;
with `"at_least": True` it may lose others too (for a mistake whose reach depends on the machine). The
unchanged lab must earn full points, and the stub that students start from must earn none. Write a mutant for
each mistake that a student is likely to make and that a careless test would let pass: five or more for a lab.
"""
