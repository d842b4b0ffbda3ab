"""The public log of signed roots: written by one process, witnessed by others, read by anyone.

Belongs here: where its files stand, how they come to be there, who cosigns, and how a trail is held
against it. The formats are in ``topics/public_log``. Object stores need the extra ``archive``.
"""
