#version 330
uniform mat4 matrix;
uniform mat4 shadow_matrix;
in vec3 in_position;
in vec3 in_normal;
in vec2 in_uv;
in vec3 in_rest;
in float in_open;
out vec3 position;
out vec3 normal;
out vec2 uv;
out vec3 rest;
out float open;
out vec3 lit_at;
void main() {
    position = in_position;
    normal = in_normal;
    uv = in_uv;
    rest = in_rest;
    open = in_open;
    lit_at = (shadow_matrix * vec4(in_position + in_normal * 0.012, 1.0)).xyz * 0.5 + 0.5;
    gl_Position = matrix * vec4(in_position, 1.0);
}
