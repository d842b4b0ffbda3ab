"""A transparency log in the formats of C2SP: signed notes, tiles, proofs, policies of witnesses.

Belongs here: what the bytes are and whether they hold. No I/O. The specifications are
c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature, tlog-tiles, tlog-proof and tlog-policy.
"""
