"""Synthetic people: sampled identities, rendered in several views, with captions and masks.

No real person's face is used anywhere. A person is sampled from a seed (`identity`), shaped
by the parametric human of the `anny` package (`head`), painted (`skin`) and dressed (`hair` and
`headwear` on the `scalp`, `wardrobe`), rendered off-screen by `pyvista` (`render`) in a scene's
light (`shade`) before that scene (`scenery`) in a style (`styles`), described in words (`caption`)
and written in img2dataset's layout (`dataset`). What a picture of a person shows is a `view`:
scene, role and clothes (`outfit`), light, expression.
"""
