// The windows of a convolution or a pooling.
#pragma once

struct Windows {
    unsigned channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding;
};
