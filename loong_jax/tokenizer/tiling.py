"""Frames larger than a model was trained on, as overlapping tiles of the size that it knows."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Tiles of ``size`` cells along one side of ``length`` cells, at ``starts``."""

    length: int
    size: int
    starts: tuple[int, ...]

    @staticmethod
    def create(length: int, tile: int) -> "_Axis":
        size = min(length, tile)
        stride = max(1, size - size // 4)  # a quarter of a tile overlaps
        starts = [*range(0, length - size, stride), length - size]
        return _Axis(length, size, tuple(starts))

    def weights(self, scale: int) -> Float[np.ndarray, "tiles length"]:
        """Of every tile along the side, in pixels of ``scale`` a cell: the distance to the tile's border, 0 outside."""
        place = np.arange(self.size * scale, dtype=np.float32)
        within = np.minimum(place + 1, place[::-1] + 1)
        weights = np.zeros((len(self.starts), self.length * scale), np.float32)
        for row, start in zip(weights, self.starts, strict=True):
            row[start * scale : (start + self.size) * scale] = within
        return weights


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles that cover a frame of latent cells; a frame no larger than a tile is its only tile."""

    rows: _Axis
    columns: _Axis

    @staticmethod
    def create(height: int, width: int, tile: int) -> "Tiling":
        """Cover ``height`` x ``width`` latent cells with tiles of at most ``tile`` x ``tile``."""
        return Tiling(_Axis.create(height, tile), _Axis.create(width, tile))

    @property
    def num_tiles(self) -> int:
        """Tiles of one frame."""
        return len(self.rows.starts) * len(self.columns.starts)

    def cut(self, frames: Shaped[np.ndarray, "b t h w ..."], scale: int) -> Shaped[np.ndarray, "n t h2 w2 ..."]:
        """All tiles, [tiles x b, t, ...], of frames with ``scale`` pixels a cell."""
        if self.num_tiles == 1:
            return frames
        height, width = self.rows.size * scale, self.columns.size * scale
        tiles = [frames[:, :, y : y + height, x : x + width] for y, x in self._corners(scale)]
        return np.concatenate(tiles)

    def join_ids(self, tiles: Int[np.ndarray, "n t h w"]) -> Int[np.ndarray, "b t h2 w2"]:
        """Every cell's id from the tile in whose interior it lies deepest."""
        if self.num_tiles == 1:
            return tiles
        tiles = tiles.reshape(self.num_tiles, -1, *tiles.shape[1:])
        owner_row, owner_column = (axis.weights(1).argmax(axis=0) for axis in (self.rows, self.columns))
        owner = owner_row[:, None] * len(self.columns.starts) + owner_column[None]
        joined = np.zeros((*tiles.shape[1:3], self.rows.length, self.columns.length), tiles.dtype)
        for index, (y, x) in enumerate(self._corners(1)):
            region = np.s_[..., y : y + self.rows.size, x : x + self.columns.size]
            joined[region] = np.where(owner[region] == index, tiles[index], joined[region])
        return joined

    def join_frames(self, tiles: np.ndarray, scale: int) -> np.ndarray:
        """uint8 frames, where tiles overlap their mean weighted by the distance to each tile's border."""
        if self.num_tiles == 1:
            return tiles
        tiles = tiles.reshape(self.num_tiles, -1, *tiles.shape[1:])
        by_row, by_column = self.rows.weights(scale), self.columns.weights(scale)
        weights = (by_row[:, None, :, None] * by_column[None, :, None, :]).reshape(self.num_tiles, *self._size(scale))
        weights /= weights.sum(axis=0)
        joined = np.zeros((*tiles.shape[1:3], *self._size(scale), tiles.shape[-1]), np.float32)
        for tile, weight, (y, x) in zip(tiles, weights, self._corners(scale), strict=True):
            rows, columns = slice(y, y + tile.shape[2]), slice(x, x + tile.shape[3])
            joined[:, :, rows, columns] += tile * weight[rows, columns, None]
        return np.round(joined).astype(np.uint8)

    def _size(self, scale):
        return self.rows.length * scale, self.columns.length * scale

    def _corners(self, scale):
        return [(y * scale, x * scale) for y in self.rows.starts for x in self.columns.starts]
