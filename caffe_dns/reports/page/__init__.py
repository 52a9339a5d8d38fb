"""One HTML page that needs no other file: charts, tables, graphs and pictures of nets and runs.

`parts` has the elements of a page, and `render` writes the file, with page.html, page.css and
page.js. The other modules say what is shown: curves, weights, masks, costs. Charts are plotly's.
Whatever comes from a log or a definition is text here, never markup.
"""
