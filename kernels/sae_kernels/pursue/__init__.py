"""The codes of a matching pursuit: k greedy steps on the residual."""
