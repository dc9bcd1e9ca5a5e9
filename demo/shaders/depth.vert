#version 330
uniform mat4 matrix;
in vec3 in_position;
in vec2 in_uv;
out vec2 uv;
void main() {
    uv = in_uv;
    gl_Position = matrix * vec4(in_position, 1.0);
}
