"""
Train and inspect the four tiny digit pipelines that ship in `runners/demo`.

`python -m tools.demo.train --out runners/demo` makes them again from scikit-learn's digits, on one CPU thread;
`python -m tools.demo.contact_sheet --out sheet.png` draws a page to look at. Nothing here is imported by falctl.
"""
