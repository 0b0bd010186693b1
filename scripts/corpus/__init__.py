"""What `scripts/make-corpus` is made of: recipes for real documents, which real programs write.

`recipe` says what a recipe is. `pdf`, `images`, `libreoffice`, `packages` and `markup` hold those of each kind, with
`office` and `office_content` behind LibreOffice's. `ingredients` are the text and the pictures. `workshop` is the build
folder. `build` makes all documents, and `origins` the table of ORIGINS.md.
"""
