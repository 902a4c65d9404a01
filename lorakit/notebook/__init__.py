"""What only notebooks need: the live panel, papermill execution, grids, rehearsals, offline bundles and the studio.

A new page of the studio is one file in `studio/tabs/`.
"""
