"""A synthetic world in which the paper's claims can be tried on a laptop: scenes, questions, needles in haystacks."""
