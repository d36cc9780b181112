"""Documents that people keep, Markdown, text, HTML and PDF, as sections under headings; and what is made of them.

Folders are read by `folder`, passages cut by `passages`, pairs and questions made by `pairs` and `questions`. Nothing
here knows of models and tokens.
"""
