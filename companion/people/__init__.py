"""Synthetic people: sampled from seeds, rendered in several views, with captions and masks.

No real person's face is used anywhere. The modules, from the sampled numbers to the data set:

- `appearance` (with `hairstyle`) samples what a person looks like, the same in all their pictures.
- `view` (with `outfit`) samples what one picture of a person shows: pose, expression, scene, light,
  style, role and clothes. `groups` does so for pictures of two or three people.
- `head` shapes head and shoulders by the parametric human of the `anny` package. `skin`, `eyes`,
  `mouth`, `beard` and `glasses` complete the face; `hair` and `headwear` lie on the `scalp`, and
  `wardrobe` dresses the body. All of them are triangle meshes (`mesh`).
- `render` draws the meshes off-screen with `pyvista`, lit by `shade`, in front of a scene
  (`scenery`), and finishes the picture in one of the `styles`.
- `caption` describes a picture in words, and `dataset` writes pictures, captions, masks and depth
  maps in img2dataset's layout.
"""
