"""Results to look at: a page for each slide and each set of tiles, and `index.html` over all results of a folder.

`slide`, `tile_set` and `run` collect what a page tells, as plain values; `templates` makes the page of them and of the
HTML, CSS and JavaScript beside it. `samples` chooses the tiles that are shown, `images` makes small pictures.
"""
