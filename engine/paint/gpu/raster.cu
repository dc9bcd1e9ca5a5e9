// The rasteriser of engine/paint/raster.py for a GPU: the same rules and the same order of operations, so that both cover the
// same pixels. Compiled without contraction into fused multiply-adds. One thread draws one pixel of one mesh.

// The triangle of triangles [F, 3] that covers each pixel centre of [height, width], and the weights of its corners.
// vertices [B, V, 3] in pixels, smaller z is nearer; triangle [B, height, width], -1 for none; weights [B, height, width, 3].
extern "C" __global__ void locate(const float* vertices, const int* triangles, int vertex_count, int triangle_count,
                                  int height, int width, int* triangle, float* weights) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= width || row >= height) return;
    vertices += (long long)blockIdx.z * vertex_count * 3;
    const double x = column + 0.5, y = row + 0.5;
    float nearest = 1.0f / 0.0f, first = 0, second = 0, third = 0;
    int best = -1;
    for (int f = 0; f < triangle_count; ++f) {  // the same triangle for the whole warp: loads are broadcast
        const float* p0 = vertices + 3 * triangles[3 * f];
        const float* p1 = vertices + 3 * triangles[3 * f + 1];
        const float* p2 = vertices + 3 * triangles[3 * f + 2];
        const float x0 = p0[0], y0 = p0[1], x1 = p1[0], y1 = p1[1], x2 = p2[0], y2 = p2[1];
        if (column < (int)fminf(x0, fminf(x1, x2)) || column > (int)fmaxf(x0, fmaxf(x1, x2))) continue;
        if (row < (int)fminf(y0, fminf(y1, y2)) || row > (int)fmaxf(y0, fmaxf(y1, y2))) continue;
        const float area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
        if (area == 0) continue;
        const double a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area;
        const double b = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area;
        const double c = 1 - a - b;
        if (a < 0 || b < 0 || c < 0) continue;
        const double z = a * p0[2] + b * p1[2] + c * p2[2];
        if (z < nearest) {
            nearest = (float)z;
            best = f;
            first = (float)a;
            second = (float)b;
            third = (float)c;
        }
    }
    const long long pixel = ((long long)blockIdx.z * height + row) * width + column;
    triangle[pixel] = best;
    weights[3 * pixel] = first;
    weights[3 * pixel + 1] = second;
    weights[3 * pixel + 2] = third;
}

// values [B, V, K] at the corners of triangles [F, 3], interpolated to out [B, K, height, width]; 0 where there is
// no triangle, or an index of F or more.
extern "C" __global__ void spread(const int* triangle, const float* weights, const int* triangles, const float* values,
                                  int triangle_count, int vertex_count, int channels, int height, int width,
                                  float* out) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= width || row >= height) return;
    const long long size = (long long)height * width, place = (long long)row * width + column;
    const long long pixel = blockIdx.z * size + place;
    values += (long long)blockIdx.z * vertex_count * channels;
    out += blockIdx.z * channels * size + place;
    const int f = triangle[pixel];
    for (int k = 0; k < channels; ++k) {
        float mixed = 0;
        if (f >= 0 && f < triangle_count) {
            const float* w = weights + 3 * pixel;
            mixed = w[0] * values[triangles[3 * f] * channels + k] + w[1] * values[triangles[3 * f + 1] * channels + k] +
                    w[2] * values[triangles[3 * f + 2] * channels + k];
        }
        out[k * size] = mixed;
    }
}
