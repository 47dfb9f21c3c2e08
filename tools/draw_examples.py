"""Draws the example images of the Assess tab: `python -m tools.draw_examples`.

All of them are computed here, so that they are the project's own and nobody else's pictures are needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from annotation.ui.assess.examples import EXAMPLES_FOLDER

IMAGE_SIDE = 640  # pixels of the finished images
OVERSAMPLING = 2  # drawn larger and scaled down, for smooth edges

Vector = np.ndarray  # [..., 3]: a colour from 0 to 1, or a direction


def draw_all(folder: Path = EXAMPLES_FOLDER) -> None:
    """Write every example as WebP."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw().save(folder / name, quality=88, method=6)


def _finish(colours: Vector) -> Image.Image:
    """[S, S, 3] colours from 0 to 1 -> an image of the final size."""
    image = Image.fromarray((colours.clip(0, 1) * 255).round().astype(np.uint8))
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y downwards, both from 0 to 1, [S, S] each."""
    size = IMAGE_SIDE * OVERSAMPLING
    axis = (np.arange(size) + 0.5) / size
    return np.meshgrid(axis, axis)


def _mix(low: Vector, high: Vector, share: np.ndarray) -> Vector:
    return low + (high - low) * share[..., None]


def _ridge(x: np.ndarray, rng: np.random.Generator, roughness: float) -> np.ndarray:
    """A mountain outline: a few octaves of sines with random phases."""
    octaves = 2.0 ** np.arange(1, 8)
    phases, signs = rng.uniform(0, 6.28, len(octaves)), rng.uniform(0.6, 1.0, len(octaves))
    waves = signs * np.sin(x[..., None] * octaves * 3.1 + phases) / octaves**roughness
    return waves.sum(-1)


def lighthouse() -> Image.Image:
    """A lighthouse on a cliff above a calm sea at sunset, mountains in the distance."""
    rng = np.random.default_rng(7)
    x, y = _grid()
    horizon, sun = 0.62, (0.36, 0.55)
    sky = _mix(np.array([0.13, 0.20, 0.42]), np.array([0.98, 0.62, 0.38]), (y / horizon).clip(0, 1) ** 1.5)
    distance = np.hypot(x - sun[0], y - sun[1])
    sky += np.exp(-distance * 6)[..., None] * np.array([0.5, 0.32, 0.08])
    sky = _mix(sky, np.array([1.0, 0.95, 0.78]), ((0.045 - distance) * 900).clip(0, 1))
    scene = sky
    for depth, (base, tone) in enumerate([(0.50, 0.62), (0.545, 0.42), (0.585, 0.26)]):
        top = base + 0.055 * _ridge(x, rng, 1.1)
        colour = tone * np.array([0.62, 0.55, 0.85]) + (0.62 - tone) * np.array([0.12, 0.15, 0.35])
        haze = ((y - top) / 0.12).clip(0, 1) * (0.45 - 0.1 * depth)
        layer = _mix(np.broadcast_to(colour, scene.shape), np.array([0.95, 0.62, 0.5]), haze)
        scene = np.where((y > top)[..., None], layer, scene)
    depth = ((y - horizon) / (1 - horizon)).clip(0, 1)
    sea = _mix(np.array([0.80, 0.52, 0.46]), np.array([0.07, 0.13, 0.28]), depth**0.55)
    waves = np.sin(y**2 * 620 + 5 * np.sin(x * 9 + y * 60)) * np.sin(x * (70 - 52 * depth) + y * 140)
    glitter = np.exp(-(((x - sun[0]) / (0.035 + 0.13 * depth)) ** 2)) * (waves > 0.15 + 0.35 * depth)
    sea += (0.03 * waves)[..., None] + glitter[..., None] * np.array([0.42, 0.28, 0.12])
    scene = np.where((y > horizon)[..., None], sea, scene)
    rise = ((x - 0.52) / 0.17).clip(0, 1)
    cliff_top = 1.04 - 0.48 * rise**0.6 - 0.02 * x + 0.012 * _ridge(x * 3, rng, 0.9)
    rock = 0.10 + 0.05 * _ridge(x * 4 + y * 3, rng, 0.7) + 0.10 * ((y - cliff_top) < 0.012)
    cliff = rock[..., None] * np.array([1.0, 0.86, 0.92]) + np.array([0.06, 0.05, 0.08])
    scene = np.where(((y > cliff_top) & (x > 0.52))[..., None], cliff, scene)
    image = Image.fromarray((scene.clip(0, 1) * 255).astype(np.uint8))
    _draw_tower(image)
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)


def _draw_tower(image: Image.Image) -> None:
    """The lighthouse itself, with its beam, onto the large drawing."""
    size = image.width
    beam = Image.new("L", image.size)
    corners = ((0.80, 0.222), (-0.10, 0.062), (-0.10, 0.272))
    ImageDraw.Draw(beam).polygon([(px * size, py * size) for px, py in corners], fill=110)
    fade = Image.linear_gradient("L").rotate(90).resize(image.size)  # strongest at the lamp
    fade = fade.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    beam = Image.composite(beam, Image.new("L", image.size), fade)
    beam = beam.filter(ImageFilter.GaussianBlur(size / 90))
    image.paste(Image.new("RGB", image.size, "#fff3c8"), mask=beam)
    draw = ImageDraw.Draw(image)
    bottom, top, middle = 0.57, 0.25, 0.80
    strips = 240
    for i in range(strips):  # from the left, lit by the sun, to the right in shade
        across = i / (strips - 1) * 2 - 1
        light = 0.35 + 0.65 * max(0.0, -0.75 * across + 0.66 * (1 - across**2) ** 0.5)
        for band in range(5):
            low, high = (bottom + (top - bottom) * k / 5 for k in (band, band + 1))
            colour = np.array([0.83, 0.23, 0.20] if band % 2 else [0.99, 0.95, 0.88]) * min(1.0, light)
            half = [0.036 - 0.013 * (bottom - level) / (bottom - top) for level in (low, high)]
            step = 2.2 / strips
            corners = [
                (middle + half[0] * across, low),
                (middle + half[1] * across, high),
                (middle + half[1] * (across + step), high),
                (middle + half[0] * (across + step), low),
            ]
            fill = tuple(int(255 * c) for c in colour)
            draw.polygon([(px * size, py * size) for px, py in corners], fill=fill)

    def box(left: float, upper: float, right: float, lower: float, fill: str) -> None:
        draw.rectangle([(middle + left) * size, upper * size, (middle + right) * size, lower * size], fill)

    box(-0.034, 0.243, 0.034, 0.253, "#2b2331")
    box(-0.020, 0.205, 0.020, 0.243, "#ffe9a3")
    for post in (-0.020, -0.007, 0.006, 0.018):
        box(post, 0.205, post + 0.003, 0.243, "#2b2331")
    roof = [(middle - 0.027, 0.206), (middle, 0.170), (middle + 0.027, 0.206)]
    draw.polygon([(px * size, py * size) for px, py in roof], fill="#7c1f22")
    for level in (0.33, 0.45):
        box(-0.006, level, 0.004, level + 0.024, "#2b2331")


def blurred_lighthouse() -> Image.Image:
    """The same picture as a bad camera would take it: out of focus and noisy."""
    soft = np.asarray(lighthouse().filter(ImageFilter.GaussianBlur(IMAGE_SIDE / 70))).astype(np.float64)
    noise = (
        np.random.default_rng(3).normal(0, 9, (IMAGE_SIDE // 2, IMAGE_SIDE // 2, 1)).repeat(2, 0).repeat(2, 1)
    )
    return Image.fromarray((soft * 0.9 + 8 + noise).clip(0, 255).astype(np.uint8))


def spheres() -> Image.Image:
    """Three glossy balls on a checkered floor, ray-traced."""
    return _draw_balls(BALL_SHAPES)


def swapped_balls() -> Image.Image:
    """A large blue ball between two small red ones, where the prompt has the colours the other way round."""
    red, blue = np.array([0.80, 0.07, 0.06]), np.array([0.04, 0.12, 0.62])
    centre = (np.array([0.0, 0.85, 0.6]), 0.85, blue)
    return _draw_balls([centre, *((np.array([x, 0.42, -0.35]), 0.42, red) for x in (-1.15, 1.15))])


Ball = tuple[Vector, float, Vector]  # centre, radius, colour


def _draw_balls(balls: list[Ball]) -> Image.Image:
    x, y = _grid()
    eye = np.array([0.0, 1.25, -4.2])
    rays = np.stack([(x - 0.5) * 1.05, -(y - 0.5) * 1.05 - 0.22, np.full_like(x, 1.0)], axis=-1)
    return _finish(_trace(balls, eye, _unit(rays), bounces=2) ** (1 / 2.2))


BALL_SHAPES: list[Ball] = [
    (np.array([-1.02, 0.62, 0.35]), 0.62, np.array([0.80, 0.07, 0.06])),
    (np.array([0.28, 0.80, 0.95]), 0.80, np.array([0.85, 0.58, 0.10])),
    (np.array([0.98, 0.42, -0.55]), 0.42, np.array([0.03, 0.38, 0.16])),
]
LAMP_POSITION = np.array([-3.5, 5.5, -3.0])


def _unit(vectors: Vector) -> Vector:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _hit_ball(origin: Vector, ray: Vector, centre: Vector, radius: float) -> np.ndarray:
    """Distance along each ray to a ball; infinite where it misses."""
    offset = origin - centre
    half_b = (offset * ray).sum(-1)
    root = half_b**2 - (offset**2).sum(-1) + radius**2
    distance = -half_b - np.sqrt(root.clip(0))
    return np.where((root > 0) & (distance > 1e-4), distance, np.inf)


def _trace(balls: list[Ball], origin: Vector, ray: Vector, bounces: int) -> Vector:
    """Light that comes back along each ray, linear."""
    floor = np.where(ray[..., 1] < -1e-6, -origin[..., 1] / np.minimum(ray[..., 1], -1e-6), np.inf)
    hits = np.stack([floor] + [_hit_ball(origin, ray, centre, radius) for centre, radius, _ in balls])
    nearest, distance = hits.argmin(0), hits.min(0)
    backdrop = _mix(
        np.array([0.50, 0.55, 0.62]), np.array([0.10, 0.14, 0.24]), ray[..., 1].clip(-0.1, 0.9) + 0.1
    )
    seen = np.isfinite(distance)
    point = origin + ray * np.where(seen, distance, 0)[..., None]
    checks = (np.floor(point[..., 0] * 1.6) + np.floor(point[..., 2] * 1.6)) % 2
    colour = _mix(np.array([0.72, 0.69, 0.63]), np.array([0.12, 0.12, 0.14]), checks)
    normal = np.broadcast_to(np.array([0.0, 1.0, 0.0]), point.shape).copy()
    for i, (centre, radius, tint) in enumerate(balls, start=1):
        colour[nearest == i] = tint
        normal[nearest == i] = ((point - centre) / radius)[nearest == i]
    lit = _light(balls, point, normal)
    to_lamp = _unit(LAMP_POSITION - point)
    mirrored = ray - 2 * (ray * normal).sum(-1, keepdims=True) * normal
    shine = (mirrored * to_lamp).sum(-1).clip(0) ** 90 * (nearest > 0) * lit
    result = colour * (0.16 + 0.95 * (normal * to_lamp).sum(-1).clip(0) * lit)[..., None]
    result += shine[..., None]
    if bounces:
        facing = (-(ray * normal).sum(-1)).clip(0, 1)
        gloss = np.where(nearest > 0, 0.06 + 0.6 * (1 - facing) ** 4, 0.10)[..., None]
        result = result * (1 - gloss) + gloss * _trace(balls, point + normal * 1e-3, mirrored, bounces - 1)
    fog = (1 - np.exp(-((np.where(seen, distance, 0) / 20) ** 2)))[..., None]
    return np.where(seen[..., None], result * (1 - fog) + backdrop * fog, backdrop)


def _light(balls: list[Ball], point: Vector, normal: Vector) -> np.ndarray:
    """Share of a round lamp that each point sees, from 0 to 1: soft shadows."""
    rng = np.random.default_rng(0)
    share = np.zeros(point.shape[:-1])
    samples = 12
    for spot in LAMP_POSITION + rng.normal(0, 0.28, (samples, 3)):
        ray = _unit(spot - point)
        start = point + normal * 1e-3
        free = np.ones(share.shape, dtype=bool)
        for centre, radius, _ in balls:
            free &= ~np.isfinite(_hit_ball(start, ray, centre, radius))
        share += free / samples
    return share


def planet() -> Image.Image:
    """A ringed planet among stars."""
    rng = np.random.default_rng(11)
    x, y = _grid()
    space = np.array([0.02, 0.02, 0.05]) + 0.10 * np.exp(
        -(((x + y - 1.1) / 0.30) ** 2)[..., None]
    ) * np.array([0.55, 0.30, 0.95])
    for _ in range(420):
        at, size = rng.uniform(0, 1, 2), rng.uniform(0.0004, 0.0016)
        left, right = (int(v * x.shape[0]) for v in (at[0] - 0.008, at[0] + 0.008))
        upper, lower = (int(v * x.shape[0]) for v in (at[1] - 0.008, at[1] + 0.008))
        part = (slice(max(0, upper), lower), slice(max(0, left), right))
        glow = np.exp(-(((x[part] - at[0]) ** 2 + (y[part] - at[1]) ** 2) / size**2))
        space[part] += glow[..., None] * rng.uniform(0.5, 1.0) * np.array([1.0, 0.96, 0.88])
    centre, radius, tilt = (0.5, 0.5), 0.245, -0.38
    dx, dy = x - centre[0], y - centre[1]
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    depth = np.sqrt((radius**2 - dx**2 - dy**2).clip(0)) / radius
    latitude = v / radius + 0.10 * depth
    bands = 0.5 + 0.5 * np.sin(
        latitude * 13 + 0.35 * np.sin(u * 26 + latitude * 6) + 0.8 * np.sin(latitude * 31)
    )
    surface = _mix(np.array([0.80, 0.45, 0.24]), np.array([0.98, 0.83, 0.62]), bands)
    sun = _unit(np.array([-0.62, -0.42, 0.66]))
    light = (dx / radius * sun[0] + dy / radius * sun[1] + depth * sun[2]).clip(0, 1)
    ring_radius = np.hypot(u, v / 0.30) / radius
    grain = 0.62 + 0.38 * np.sin(ring_radius * 46) * np.sin(ring_radius * 17 + 1)
    ring = ((ring_radius > 1.32) & (ring_radius < 2.02) & (abs(ring_radius - 1.72) > 0.022)) * grain
    ring_colour = np.broadcast_to([0.81, 0.70, 0.54], space.shape)
    scene = _mix(space, ring_colour, 0.85 * ring * (v < 0))
    disk = ((radius - np.hypot(dx, dy)) * 900).clip(0, 1)
    shadow = 1 - 0.45 * ((np.hypot(u, (v + 0.055) / 0.30) / radius > 1.34) & (v < 0.06) & (v > -0.1))
    scene = _mix(scene, surface * (0.03 + light * shadow)[..., None], disk)
    return _finish(_mix(scene, ring_colour, 0.85 * ring * (v >= 0)))


# Of the hand: how far to the side and how high each finger ends, and how much it leans outwards.
FINGERS = (
    (-0.62, 1.02, -0.30),
    (-0.36, 1.36, -0.16),
    (-0.12, 1.50, -0.05),
    (0.13, 1.48, 0.05),
    (0.37, 1.34, 0.16),
    (0.60, 1.05, 0.30),
)


def hand() -> Image.Image:
    """A palm with six fingers and a thumb, as image generators like to draw it; sphere-traced."""
    x, y = _grid()
    scene = _mix(
        np.array([0.42, 0.55, 0.60]),
        np.array([0.14, 0.20, 0.26]),
        (np.hypot(x - 0.4, y - 0.35) * 1.25).clip(0, 1),
    )
    eye, far = np.array([0.0, 0.12, -5.0]), 9.0
    rays = _unit(np.stack([(x - 0.5) * 0.78, -(y - 0.5) * 0.78, np.ones_like(x)], axis=-1))
    depth, open_rays = np.zeros(x.shape), np.ones(x.shape, dtype=bool)
    for _ in range(60):
        distance = _hand_distance(eye + rays[open_rays] * depth[open_rays][..., None])
        depth[open_rays] += distance * 0.9
        open_rays[open_rays] = (distance > 5e-4) & (depth[open_rays] < far)
    hit = depth < far
    ray = rays[hit]
    point = eye + ray * depth[hit][..., None]
    steps = 1e-3 * np.eye(3)
    normal = _unit(
        np.stack([_hand_distance(point + step) - _hand_distance(point - step) for step in steps], axis=-1)
    )
    lamp = _unit(np.array([-0.55, 0.65, -0.75]))
    light = ((normal @ lamp + 0.3) / 1.3).clip(0, 1)  # softly around the edges, as on skin
    tone = (1 + 0.03 * np.sin(point[..., 0] * 9 + 2) * np.sin(point[..., 1] * 7)) * (
        1 - 0.28 * _creases(point)
    )
    skin = np.array([0.82, 0.56, 0.44]) * tone[..., None] * (0.22 + 0.9 * light)[..., None]
    skin += np.array([0.16, 0.03, 0.01]) * ((1 - light) * light * 1.6)[..., None]
    skin += (0.10 * (normal * _unit(lamp - ray)).sum(-1).clip(0) ** 24)[..., None]
    rim = (1 + (normal * ray).sum(-1).clip(-1, 0)) ** 3
    scene[hit] = skin + rim[..., None] * np.array([0.10, 0.12, 0.14])
    return _finish(scene)


def _hand_distance(point: Vector) -> np.ndarray:
    """About how far points [..., 3] are from the hand's surface; negative within."""
    flat = point * [1, 1, 1.7]
    left, right = (_capsule(flat, (s * 0.26, -0.28, 0), (s * 0.22, 0.30, 0), 0.40, 0.36) for s in (-1, 1))
    wrist = _capsule(point, (0, -0.5, 0), (0, -2.2, 0), 0.30, 0.36)
    whole = _blend(_blend(left, right, 0.12) * 0.75, wrist, 0.25)
    for tip, height, lean in FINGERS:
        joint = (tip * 0.95 + lean * 0.15, 0.45 + (height - 0.45) * 0.55, 0.06)
        lower = _capsule(point, (tip * 0.82, 0.45, 0), joint, 0.135, 0.12)
        upper = _capsule(point, joint, (tip + lean * 0.5, height, 0), 0.122, 0.098)
        whole = _blend(whole, np.minimum(lower, upper), 0.05)
    lower = _capsule(point, (-0.40, -0.25, 0.05), (-0.86, 0.12, 0.14), 0.20, 0.15)
    upper = _capsule(point, (-0.86, 0.12, 0.14), (-1.06, 0.52, 0.12), 0.15, 0.11)
    return _blend(whole, np.minimum(lower, upper), 0.10)


def _capsule(
    point: Vector, start: tuple[float, ...], end: tuple[float, ...], start_radius: float, end_radius: float
) -> np.ndarray:
    """Distance to a round bar between two points."""
    axis = np.subtract(end, start)
    along = ((point - start) @ axis / (axis @ axis)).clip(0, 1)
    radius = start_radius + (end_radius - start_radius) * along
    return np.linalg.norm(point - start - along[..., None] * axis, axis=-1) - radius


def _blend(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """The smaller of two distances, with a smooth transition."""
    share = (0.5 + 0.5 * (second - first) / width).clip(0, 1)
    return second + (first - second) * share - width * share * (1 - share)


def _creases(point: Vector) -> np.ndarray:
    """The lines of the palm and of the joints, from 0 to 1."""
    x, y = point[..., 0], point[..., 1]
    creases = np.zeros(x.shape)
    for line in (0.22 + 0.10 * np.sin(2.2 * x + 0.4), 0.02 + 0.12 * np.sin(2.0 * x - 0.5)):
        creases += np.exp(-(((y - line) / 0.012) ** 2)) * (abs(x) < 0.42)
    for tip, height, lean in FINGERS:
        for share in (0.05, 0.42, 0.74):
            on_finger = abs(x - (tip * (0.85 + 0.15 * share) + lean * 0.4 * share)) < 0.13
            level = 0.50 + (height - 0.45) * share
            creases += np.exp(-(((y - level) / 0.010) ** 2)) * on_finger
    return creases.clip(0, 1)


DRAWINGS = {
    "lighthouse.webp": lighthouse,
    "lighthouse-blurred.webp": blurred_lighthouse,
    "spheres.webp": spheres,
    "planet.webp": planet,
    "swapped-balls.webp": swapped_balls,
    "hand.webp": hand,
}

if __name__ == "__main__":
    draw_all()
