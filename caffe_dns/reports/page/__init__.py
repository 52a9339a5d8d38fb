"""One HTML page that needs no other file: charts, tables, graphs and pictures of nets and runs.

`parts` has what a page is put together from, and `render` makes the file of it, with page.html,
page.css and page.js. The other modules say what there is to see: curves, weights, masks, costs.
Charts are plotly's. Whatever comes from a log or a definition is text here, never markup.
"""
