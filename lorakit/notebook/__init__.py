"""What only notebooks need: the live panel, papermill execution, grids, rehearsals, offline bundles and the studio.

The studio's page is `studio/studio.vue`, its state and events are `studio/app.py`.
"""
