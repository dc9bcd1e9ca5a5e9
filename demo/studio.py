"""Renders the head: OpenGL 3.3 without a screen (llvmpipe suffices), one key light with a soft shadow, a backdrop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import moderngl
import numpy as np
from head import Part
from PIL import Image, ImageFilter

SIZE_PX = 512
OVERSAMPLE = 2
SHADOW_PX = 1024
KEY = np.array([-0.62, 0.62, 0.85])  # towards the light; x is the speaker's left, y up, z to the camera
LOOK_AT = np.array([0.0, 6.33, 0.9])
CAMERA = np.array([0.0, 6.42, 13.5])
FRAME_HEIGHT_DM = 3.05
SHADERS = Path(__file__).with_name("shaders")
MATERIALS = {"skin": 0, "eyes": 1, "teeth": 2, "tongue": 3, "hair": 4, "shirt": 5, "lashes": 6, "brows": 6}
SEE_THROUGH = ("lashes", "brows", "hair")


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def _view(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    forward = _unit(target - eye)
    up = np.array([0.0, 1.0, 0.0]) if abs(forward[1]) < 0.99 else np.array([0.0, 0.0, 1.0])
    right = _unit(np.cross(forward, up))
    matrix = np.eye(4)
    matrix[:3, :3] = [right, np.cross(right, forward), -forward]
    matrix[:3, 3] = -matrix[:3, :3] @ eye
    return matrix


def camera_matrix() -> np.ndarray:
    distance = np.linalg.norm(CAMERA - LOOK_AT)
    near, far, focal = 5.0, 40.0, 2 * distance / FRAME_HEIGHT_DM
    projection = np.array(
        [
            [focal, 0, 0, 0],
            [0, focal, 0, 0],
            [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, -1, 0],
        ]
    )
    return projection @ _view(CAMERA, LOOK_AT)


def light_matrix(direction: np.ndarray, radius_dm: float = 2.6) -> np.ndarray:
    """Orthographic view of the head from a light at infinity; depth covers twice the radius."""
    matrix = _view(LOOK_AT - [0, 0.2, 0.5] + _unit(direction) * 6, LOOK_AT - [0, 0.2, 0.5])
    scale = np.diag([1 / radius_dm, 1 / radius_dm, -1 / 4.5, 1.0])
    scale[2, 3] = -6 / 4.5
    return scale @ matrix


def backdrop(size: int) -> np.ndarray:
    """A softly lit room far out of focus: [size, size, 3] uint8 RGB."""
    y, x = np.mgrid[0:size, 0:size] / size
    glow = np.exp(-(((x - 0.3) / 0.55) ** 2 + ((y - 0.35) / 0.6) ** 2))
    image = np.stack([0.30 + 0.36 * glow, 0.37 + 0.33 * glow, 0.43 + 0.27 * glow], 2)
    shapes = [
        (0.0, 0.0, 0.16, 1.0, (0.86, 0.83, 0.76)),
        (0.80, 0.10, 1.0, 0.30, (0.50, 0.42, 0.36)),
        (0.84, 0.36, 1.0, 0.62, (0.36, 0.47, 0.40)),
        (0.78, 0.32, 1.0, 0.345, (0.62, 0.50, 0.40)),
        (0.78, 0.64, 1.0, 0.665, (0.62, 0.50, 0.40)),
    ]
    for left, top, right, bottom, colour in shapes:
        image[(x >= left) & (x < right) & (y >= top) & (y < bottom)] = colour
    blurred = Image.fromarray((image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size * 0.035))
    grain = np.random.default_rng(1).normal(0, 1.0, (size, size, 1))  # hides banding in the gradient
    return np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8)


class Studio:
    """Holds the GL side of the head's parts; `render` draws one posed base mesh."""

    def __init__(self, parts: Sequence[Part], textures: Mapping[str, np.ndarray], rest: np.ndarray):
        self._gl = moderngl.create_context(standalone=True, backend="egl", require=330)
        self._parts = {part.name: part for part in parts}
        source = {path.name: path.read_text() for path in SHADERS.iterdir()}
        self._program = self._gl.program(source["scene.vert"], source["scene.frag"])
        self._depth_program = self._gl.program(source["depth.vert"], source["depth.frag"])
        self._wall_program = self._gl.program(source["wall.vert"], source["wall.frag"])
        self._textures = {name: self._texture(image) for name, image in textures.items()}
        self._wall = self._gl.vertex_array(self._wall_program, [])
        self._wall_texture = self._texture(backdrop(SIZE_PX))
        self._moving = {p.name: self._gl.buffer(reserve=len(p.vertex) * 24, dynamic=True) for p in parts}
        self._occlusion = {p.name: np.ones(len(p.offset), np.float32) for p in parts}
        self._rest = rest
        self._arrays: dict[str, tuple[moderngl.VertexArray, moderngl.VertexArray]] = {}
        self._build_arrays()
        big = (SIZE_PX * OVERSAMPLE,) * 2
        self._picture = self._gl.framebuffer([self._gl.texture(big, 4)], self._gl.depth_renderbuffer(big))
        self._shadow_map = self._gl.depth_texture((SHADOW_PX, SHADOW_PX))
        self._shadow_map.compare_func = ""
        self._shadow_map.repeat_x = self._shadow_map.repeat_y = False
        self._shadow = self._gl.framebuffer([], self._shadow_map)

    def _texture(self, image: np.ndarray) -> moderngl.Texture:
        texture = self._gl.texture(
            image.shape[1::-1], image.shape[2], np.ascontiguousarray(image[::-1]).tobytes(), alignment=1
        )
        texture.build_mipmaps()
        texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        return texture

    def _build_arrays(self) -> None:
        for name, part in self._parts.items():
            rest = part.positions(self._rest)[part.vertex]
            fixed = np.concatenate([part.uv, rest, self._occlusion[name][part.vertex, None]], 1).astype("f4")
            still = self._gl.buffer(fixed.tobytes())
            index = self._gl.buffer(part.triangles.astype("i4").tobytes())
            scene = [
                (self._moving[name], "3f 3f", "in_position", "in_normal"),
                (still, "2f 3f 1f", "in_uv", "in_rest", "in_open"),
            ]
            depth = [(self._moving[name], "3f 3x4", "in_position"), (still, "2f 4x4", "in_uv")]
            self._arrays[name] = (
                self._gl.vertex_array(self._program, scene, index, skip_errors=True),
                self._gl.vertex_array(self._depth_program, depth, index),
            )

    def _upload(self, base: np.ndarray) -> dict[str, np.ndarray]:
        positions = {name: part.positions(base) for name, part in self._parts.items()}
        for name, part in self._parts.items():
            both = np.concatenate([positions[name], part.normals(positions[name])], 1).astype("f4")
            self._moving[name].write(both[part.vertex].tobytes())
        return positions

    def _draw_depth(self, matrix: np.ndarray) -> None:
        self._shadow.use()
        self._gl.viewport = (0, 0, SHADOW_PX, SHADOW_PX)
        self._gl.enable_only(moderngl.DEPTH_TEST)
        self._shadow.clear(depth=1.0)
        self._depth_program["matrix"].write(matrix.T.astype("f4").tobytes())
        for name, (_, array) in self._arrays.items():
            if name not in ("lashes", "brows"):
                self._textures[name].use(0)
                self._depth_program["cutout"] = 0.4 if name == "hair" else -1.0
                array.render()

    def bake_occlusion(self, base: np.ndarray, directions: int = 96) -> None:
        """Ambient occlusion of each vertex, from depth pictures of many directions over the upper sphere."""
        positions = self._upload(base)
        normals = {name: part.normals(positions[name]) for name, part in self._parts.items()}
        total = {name: np.zeros(len(p)) for name, p in positions.items()}
        weight = {name: np.full(len(p), 1e-6) for name, p in positions.items()}
        for n in range(directions):
            height = 1 - 1.5 * (n + 0.5) / directions
            angle = n * 2.399963
            side = np.sqrt(1 - height**2)
            direction = np.array([side * np.cos(angle), height, side * np.sin(angle)])
            matrix = light_matrix(direction)
            self._draw_depth(matrix)
            depth = np.frombuffer(self._shadow_map.read(alignment=1), "f4").reshape(SHADOW_PX, SHADOW_PX)
            for name, points in positions.items():
                place = points @ matrix[:3, :3].T + matrix[:3, 3]
                pixel = np.clip(((place[:, :2] * 0.5 + 0.5) * SHADOW_PX).astype(int), 0, SHADOW_PX - 1)
                seen = (place[:, 2] * 0.5 + 0.5) < depth[pixel[:, 1], pixel[:, 0]] + 0.004
                facing = np.maximum(normals[name] @ direction, 0.05 if name == "hair" else 0)
                total[name] += facing * seen
                weight[name] += facing
        for name in positions:
            self._occlusion[name] = (total[name] / weight[name]).astype(np.float32)
        self._build_arrays()

    def render(self, base: np.ndarray) -> np.ndarray:
        """Draw posed base vertices [V, 3] as [512, 512, 3] uint8 RGB."""
        self._upload(base)
        shadow = light_matrix(KEY)
        self._draw_depth(shadow)
        self._picture.use()
        self._gl.viewport = (0, 0, *self._picture.size)
        self._picture.clear(0, 0, 0, 1, depth=1.0)
        self._gl.disable(moderngl.DEPTH_TEST)
        self._wall_texture.use(0)
        self._wall.render(moderngl.TRIANGLES, 3)
        self._gl.enable(moderngl.DEPTH_TEST)
        self._shadow_map.use(1)
        self._program["picture"] = 0
        self._program["shadow_map"] = 1
        self._program["matrix"].write(camera_matrix().T.astype("f4").tobytes())
        self._program["shadow_matrix"].write(shadow.T.astype("f4").tobytes())
        self._program["camera"].write(CAMERA.astype("f4").tobytes())
        self._program["key"].write(_unit(KEY).astype("f4").tobytes())
        for name in [name for name in self._arrays if name not in SEE_THROUGH]:
            self._draw(name, cutout=0.5 if name == "eyes" else -1.0)
        self._gl.enable(moderngl.BLEND)
        self._gl.blend_func = moderngl.SRC_ALPHA, moderngl.ONE_MINUS_SRC_ALPHA
        self._draw("eyes", cutout=0.0)  # the clear cornea: only its reflections
        for name in [name for name in SEE_THROUGH if name in self._arrays]:
            if name == "hair":
                self._draw(name, cutout=0.6)
            self._picture.depth_mask = False
            self._draw(name, cutout=0.02)
            self._picture.depth_mask = True
        self._gl.disable(moderngl.BLEND)
        size = SIZE_PX * OVERSAMPLE
        pixels = np.frombuffer(self._picture.read(components=3, alignment=1), np.uint8).reshape(size, size, 3)[::-1]
        blocks = pixels.reshape(SIZE_PX, OVERSAMPLE, SIZE_PX, OVERSAMPLE, 3).astype(np.float32)
        return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)

    def _draw(self, name: str, cutout: float) -> None:
        self._textures[name].use(0)
        self._program["material"] = MATERIALS[name]
        self._program["cutout"] = cutout
        self._arrays[name][0].render()
