"""How a goal is reached: a ladder climbed, a scalar bisected, files judged against their original."""
