"""The official OpenAI client, pointed at a Diffuser API server.

    pip install openai
    python examples/openai_client.py photo.png "make the sky pink" pink.png
"""

import base64
import sys

from openai import OpenAI


def main() -> None:
    image_path, prompt, output_path = sys.argv[1:4]

    # The server checks no key; the client wants one all the same.
    client = OpenAI(base_url="http://localhost:8000/v1", api_key="none", timeout=1800)

    with open(image_path, "rb") as image:
        result = client.images.edit(
            image=image,
            prompt=prompt,
            # What OpenAI's API has no words for travels beside it. A request
            # without these gets the server's own choice.
            extra_body={"seed": 42, "num_inference_steps": 20, "true_cfg_scale": 4.0},
        )

    with open(output_path, "wb") as output:
        output.write(base64.b64decode(result.data[0].b64_json))
    print(f"saved {output_path}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main()
