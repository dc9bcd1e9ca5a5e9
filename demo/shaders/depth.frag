#version 330
uniform sampler2D picture;
uniform float cutout;
in vec2 uv;
void main() {
    if (cutout > 0.0 && texture(picture, uv).a < cutout) discard;
}
