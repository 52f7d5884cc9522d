// The kernels of npdiff/fast/cuda_ops.py, which replaces `real` and `numbers` by float or double,
// and `numbers` also by four floats at once.

struct alignas(16) four_floats { float a, b, c, d; };

__device__ void over_pixels(real* part, real value);
__device__ real over_group(real* part, real value);

// y[image, row, column, k] = the run of kernel * channels numbers of x under row k of the kernel.
// A block for each output pixel.
extern "C" __global__ void columns(const numbers* x, numbers* y, int height, int width,
                                   int channels, int kernel, int stride) {
    int column = blockIdx.x, row = blockIdx.y, image = blockIdx.z;
    numbers zero = {};
    int run = kernel * channels, first = (stride * column - kernel / 2) * channels;
    x += (size_t)image * height * width * channels;
    y += (((size_t)image * gridDim.y + row) * gridDim.x + column) * kernel * run;
    for (int k = 0; k < kernel; ++k) {
        int from_row = stride * row + k - kernel / 2;
        for (int j = threadIdx.x; j < run; j += blockDim.x) {
            bool inside_row = first + j >= 0 && first + j < width * channels;
            bool inside = inside_row && from_row >= 0 && from_row < height;
            y[k * run + j] = inside ? x[from_row * width * channels + first + j] : zero;
        }
    }
}

// A block for each group of an image: threadIdx.x is the channel in the group, threadIdx.y goes
// over the pixels.
extern "C" __global__ void group_norm(const real* x, const real* gain, const real* bias, real* y,
                                      real* n, real* rstd, double tiny, int pixels, int channels) {
    __shared__ real part[1024];
    int c = blockIdx.x * blockDim.x + threadIdx.x, count = pixels * blockDim.x;
    size_t image = (size_t)blockIdx.y * pixels * channels + c;
    real sum = 0, rest = 0, squares = 0;
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) sum += x[image + p * channels];
    real mean = over_group(part, sum) / count;
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) rest += x[image + p * channels] - mean;
    rest = over_group(part, rest) / count;  // what rounding left in the mean
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) {
        real d = x[image + p * channels] - mean - rest;
        squares += d * d;
    }
    real r = 1 / sqrt(over_group(part, squares) / count + (real)tiny);
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) {
        real scaled = (x[image + p * channels] - mean - rest) * r;
        n[image + p * channels] = scaled;
        y[image + p * channels] = scaled * gain[c] + bias[c];
    }
    if (threadIdx.x + threadIdx.y == 0) rstd[blockIdx.y * gridDim.x + blockIdx.x] = r;
}

// sums[0] = the sums of n dL/dy over an image's pixels, sums[1] = those of dL/dy.
extern "C" __global__ void group_norm_backward(const real* grad_y, const real* n, const real* rstd,
                                               const real* gain, real* grad_x, real* sums,
                                               int pixels, int channels) {
    __shared__ real part[1024];
    int c = blockIdx.x * blockDim.x + threadIdx.x, count = pixels * blockDim.x;
    size_t image = (size_t)blockIdx.y * pixels * channels + c;
    real sum_g = 0, sum_gn = 0;
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) {
        sum_g += grad_y[image + p * channels];
        sum_gn += grad_y[image + p * channels] * n[image + p * channels];
    }
    real mean_g = over_group(part, gain[c] * sum_g) / count;
    real mean_gn = over_group(part, gain[c] * sum_gn) / count;
    real r = rstd[blockIdx.y * gridDim.x + blockIdx.x];
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) {
        size_t i = image + p * channels;
        grad_x[i] = (gain[c] * grad_y[i] - mean_g - n[i] * mean_gn) * r;
    }
    over_pixels(part, sum_gn);
    if (threadIdx.y == 0) sums[(size_t)blockIdx.y * channels + c] = part[threadIdx.x];
    over_pixels(part, sum_g);
    if (threadIdx.y == 0) sums[((size_t)gridDim.y + blockIdx.y) * channels + c] = part[threadIdx.x];
}

// sums[0] = the sums of x dL/dy over an image's pixels, sums[1] = those of dL/dy.
extern "C" __global__ void scale_shift_backward(const real* grad_y, const real* x,
                                                const real* scale, real* grad_x, real* sums,
                                                int pixels, int channels) {
    __shared__ real part[1024];
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    size_t image = (size_t)blockIdx.y * pixels * channels + c;
    real factor = 1 + scale[(size_t)blockIdx.y * channels + c], sum_g = 0, sum_gx = 0;
    for (int p = threadIdx.y; p < pixels; p += blockDim.y) {
        size_t i = image + p * channels;
        grad_x[i] = factor * grad_y[i];
        sum_g += grad_y[i];
        sum_gx += grad_y[i] * x[i];
    }
    over_pixels(part, sum_gx);
    if (threadIdx.y == 0) sums[(size_t)blockIdx.y * channels + c] = part[threadIdx.x];
    over_pixels(part, sum_g);
    if (threadIdx.y == 0) sums[((size_t)gridDim.y + blockIdx.y) * channels + c] = part[threadIdx.x];
}

// part[threadIdx.x] = the sum of each thread's value over threadIdx.y.
__device__ void over_pixels(real* part, real value) {
    int x = threadIdx.x, y = threadIdx.y, row = blockDim.x;
    __syncthreads();
    part[y * row + x] = value;
    __syncthreads();
    for (int m = blockDim.y; m > 1; m = (m + 1) / 2) {
        if (y < m / 2) part[y * row + x] += part[(y + (m + 1) / 2) * row + x];
        __syncthreads();
    }
}

// The sum of each thread's value over the block.
__device__ real over_group(real* part, real value) {
    real sum = 0;
    over_pixels(part, value);
    for (int x = 0; x < blockDim.x; ++x) sum += part[x];
    return sum;
}
