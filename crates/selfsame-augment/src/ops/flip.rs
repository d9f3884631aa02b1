use super::kernels::Planes;

pub(crate) fn horizontal_flip_planes(planes: &mut Planes) {
    if planes.width > 0 {
        planes
            .data
            .chunks_exact_mut(planes.width)
            .for_each(<[u8]>::reverse);
    }
}
